"""Bit-equality on CPU in fp32 (invariant 4): fused, alone, in other orders, paused, joined late.

1 and 2 threads.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ..waiting import run_process
from .bits_run import SPECS, Job, differences, run, same
from .matrix import fused

ROOT = Path(__file__).parents[2]


def test_a_job_ends_with_the_bits_it_has_alone() -> None:
    """12 steps with AdamW; d = 24 and f = 40 are no multiples of 16."""
    assert differences(24, 40, 12) == []


def test_other_sizes_and_recompute() -> None:
    assert differences(20, 44, 3, recompute=True) == []


def _in_a_process(*arguments: int) -> str:
    command = [sys.executable, "-m", "tests.runtime.bits_run", *map(str, arguments)]
    # threads that spin on a busy machine take minutes
    passive = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = run_process(command, cwd=ROOT, env=passive)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_threads() -> None:
    assert _in_a_process(2, 72, 168, 2) == "equal with 2 threads\n"


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("hidden", "ffn"), [(256, 688), (248, 600), (1024, 2752)])
def test_larger(threads: int, hidden: int, ffn: int) -> None:
    assert _in_a_process(threads, hidden, ffn, 20 if hidden < 1000 else 3) == f"equal with {threads} threads\n"


def test_a_difference_is_noticed() -> None:
    model = fused()
    one, other = (run(model, [1], 2)[1] for _ in range(2))
    assert same(one, other)
    other.adapter.slab.params[0] += 1e-6
    assert not same(one, other)
    assert len(SPECS) >= 8 and isinstance(one, Job)

"""Another process that takes memory of the GPU is seen.

The cache of our own allocator is not taken for one.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from loramux_runtime.live.watch.memory_watch import CudaWatch

from ...waiting import finished

pytestmark = pytest.mark.gpu

TAKER = """
import sys, torch
held = torch.empty(1 << 30, dtype=torch.uint8, device="cuda:0")
print("done", flush=True)
sys.stdin.readline()
"""


def test_another_process_is_seen_and_our_cache_is_not() -> None:
    device = torch.device("cuda:0")
    torch.empty(1, device=device)
    watch = CudaWatch(device)
    before = watch.available_bytes()
    ours = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    with_ours = watch.available_bytes()
    del ours  # cached now
    cached = watch.available_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", TAKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as it:
        assert it.stdin is not None and it.stdout is not None
        assert it.stdout.readline() == "done\n"
        with_theirs = watch.available_bytes()
        it.stdin.write("\n")
        it.stdin.flush()
        finished(it)
    after = watch.available_bytes()
    assert before and with_ours and cached and with_theirs and after
    near = 64 * 2**20
    assert abs(with_ours - before) < near and abs(cached - before) < near
    assert before - with_theirs > (1 << 30) - near  # and its context
    assert abs(after - before) < near
    torch.cuda.empty_cache()

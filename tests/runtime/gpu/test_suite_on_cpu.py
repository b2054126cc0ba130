"""The GPU suite's script itself, tried on the CPU: without pydantic (the GPU image has none), resumable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from loramux_runtime.gpu.store import Store

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pydantic", "simpy", "typer"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocker())
from loramux_runtime.gpu.__main__ import main
main()
"""


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # two threads beside other tests took over four minutes


def command(out: Path) -> list[str]:
    return [sys.executable, "-c", BLOCKED, str(out), "--device", "cpu", "--tiny", "--parts", "ceilings", "methods"]


def suite(out: Path) -> list[dict[str, object]]:
    done = subprocess.run(command(out), capture_output=True, text=True, timeout=240, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_it_measures_goes_on_and_says_what_on(tmp_path: Path) -> None:
    rows = suite(tmp_path)
    keys = [row["key"] for row in rows]
    assert "fused llama-7b mixlora 4x4x200" in keys and "copy" in keys
    assert all(row["error"] is None for row in rows if "error" in row)
    facts = rows[0]
    assert facts["torch"] and facts["transformers"] and facts["date"]
    # a run that was killed in the middle of a line goes on with what is missing
    kept = (tmp_path / "results.jsonl").read_text().splitlines()
    (tmp_path / "results.jsonl").write_text("\n".join(kept[:-1]) + "\n" + kept[-1][:20] + "\n")
    again = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=240, env=ONE_THREAD)
    assert again.returncode == 0, again.stderr
    found = Store(tmp_path / "results.jsonl").rows
    assert [row["key"] for row in found] == [*keys[:-1], f"environment {len(keys) - 1}", keys[-1]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loramux_runtime.gpu", "/nonexistent"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 5 and "needs a CUDA device" in done.stderr

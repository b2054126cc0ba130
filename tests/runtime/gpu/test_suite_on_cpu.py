"""The GPU suite's script itself, tried on the CPU, and its profile.

With torch, transformers and numpy only; it is resumable.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from gpu.points import load_points, shrunk
from gpu.profile import TINY_POINTS
from gpu.store import Store
from loramux_profiles.records import read_record

from ...waiting import run_process

BLOCKED = """
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):  # absent, not forbidden: transformers asks whether SciPy is there
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in ("pydantic", "typer", "rich", "scipy", "pandas", "simpy", "pytest"):
            return None
        return super().find_spec(name, path, target)
sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
import gpu.__main__ as suite
suite.timed = lambda *given, **options: timed(*given, repeats=2, warmup=0)  # what it finds is not looked at
from gpu.timing import timed
suite.main()
"""


SUITE = Path(__file__).parents[2] / "benchmarks"
ONE_THREAD = {  # two threads beside other tests took over four minutes
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, (str(SUITE), os.environ.get("PYTHONPATH")))),
}


def command(out: Path) -> list[str]:
    parts = ("ceilings", "methods", "profile")
    return [sys.executable, "-c", BLOCKED, str(out), "--device", "cpu", "--tiny", "--parts", *parts]


def suite(out: Path) -> list[dict[str, object]]:
    done = run_process(command(out), env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_it_measures_goes_on_and_says_what_on(tmp_path: Path) -> None:
    rows = suite(tmp_path)
    keys = [row["key"] for row in rows]
    assert "fused llama-7b mixlora 4x4x200" in keys and "copy" in keys
    assert all(row["error"] is None for row in rows if "error" in row)
    facts = rows[0]
    assert facts["torch"] and facts["transformers"] and facts["date"]
    assert keys[-1] == "profile llama-7b complete"
    # a run that was killed in the middle of a line goes on with what is missing
    journal = tmp_path / "profile-llama-7b.jsonl"
    whole = journal.read_bytes()
    # identity; date and transfers; a peak and two times each
    assert len(whole.splitlines()) == 1 + 2 + TINY_POINTS * 3
    journal.write_bytes(whole[: len(whole) * 3 // 4])
    kept = (tmp_path / "results.jsonl").read_text().splitlines()
    (tmp_path / "results.jsonl").write_text("\n".join(kept[:-1]) + "\n" + kept[-1][:20] + "\n")
    again = run_process(command(tmp_path), env=ONE_THREAD)
    assert again.returncode == 0, again.stderr
    found = Store(tmp_path / "results.jsonl").rows
    assert [row["key"] for row in found] == [*keys[:-1], f"environment {len(keys) - 1}", keys[-1]]
    assert found[-1]["timed"] == found[-1]["points"] == TINY_POINTS
    # brought back, the journal is a profile
    out = tmp_path / "tiny.json"
    arguments = ["profile", "--from-journal", str(journal), "--out", str(out)]
    done = run_process([sys.executable, "-m", "loramux_cli.main", *arguments])
    assert done.returncode == 0, done.stderr
    record = read_record(out)
    assert [p.point for p in record.points] == [shrunk(point) for point in load_points()[:TINY_POINTS]]
    assert (record.device.name, record.model.name, record.model.hidden) == ("cpu", "llama-7b-tiny", 64)
    assert record.transfers is not None and record.transfers.base_load_s > 0
    assert record.fit is not None and record.fit.time is not None and record.fit.memory is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
def test_without_a_gpu_it_says_so() -> None:
    done = run_process([sys.executable, "-m", "gpu", "/nonexistent"], env=ONE_THREAD)
    assert done.returncode == 5 and "needs a CUDA device" in done.stderr

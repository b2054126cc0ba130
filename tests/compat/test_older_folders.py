"""Folders and files that an older loramux wrote are opened, resumed, replayed and plotted."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..waiting import run_process

DATA = Path(__file__).parent / "data"
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
COMMAND = [sys.executable, "-m", "loramux_cli.main"]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.copytree(DATA, tmp_path / "old")
    return tmp_path / "old"


def loramux(*arguments: str, cwd: Path) -> str:
    ran = run_process([*COMMAND, *arguments], cwd=cwd, env=ONE_THREAD)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_simulated_run_folder_is_compared_and_plotted_and_gives_the_same_numbers(old: Path) -> None:
    shown = loramux("compare", "simulated", cwd=old)
    assert "fifo" in shown and "aspen" in shown
    loramux("plot", "simulated", cwd=old)
    assert list(old.rglob("plots/*.png"))
    policies = ("--policy", "fifo", "--policy", "aspen")
    again = json.loads(loramux("simulate", "--trace", "trace.csv", *policies, "--json", cwd=old))
    for run in again["runs"]:
        folder = old / "simulated" / f"{run['policy']}-s0"
        before = json.loads((folder / "summary.json").read_text())
        same = {key for key in before if "wall" not in key}
        # sums of another processor's vector units differ in the last bit
        for key in same:
            close = isinstance(before[key], float)
            assert run[key] == (pytest.approx(before[key], rel=1e-9) if close else before[key]), key


def test_a_recorded_training_run_is_plotted_and_its_decisions_are_taken_again(old: Path) -> None:
    pytest.importorskip("torch")
    from loramux import create, replay
    from loramux_policies.stepping.stream import decisions
    from loramux_profiles.devices import load_device
    from loramux_runtime.jobs.bases import open_base
    from loramux_runtime.jobs.jobs_file import read_jobs_file
    from loramux_runtime.train.run import TrainRun

    loramux("plot", "trained", "--kind", "gantt", cwd=old)
    assert list((old / "trained").rglob("*.png"))
    events = [json.loads(line) for line in (old / "trained" / "events.jsonl").read_text().splitlines()]
    file = read_jobs_file(old / "jobs.yaml")
    specs = TrainRun(file, create("fifo"), load_device("cpu"), base=open_base(file.base)).specs
    found = replay(events, specs, create("fifo"), load_device("cpu"))
    assert found.left == "" and decisions(found.events) == decisions(events)


def test_a_profile_is_a_device(old: Path) -> None:
    assert "30" in loramux("profile", "--check", "profile.json", cwd=old)
    rows = "job_id,submit_s,base_model,method,batch_size,seq_len,total_steps,dtype\n"
    (old / "small.csv").write_text(rows + "a,0,model-config.json,lora,4,24,50,fp32\n")
    shown = loramux(
        "simulate", "--trace", "small.csv", "--policy", "fifo", "--device-profile", "profile.json", "--json", cwd=old
    )
    (run,) = json.loads(shown)["runs"]
    assert run["completed"] == 1


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    found: dict[str, Any] = load_file(folder / "adapter_model.safetensors")
    return found


def test_a_state_folder_goes_on_from_its_checkpoints_to_the_same_adapters(old: Path) -> None:
    """On the processor that it was written on the bits are the same; others may differ a little."""
    pytest.importorskip("torch")
    before = {
        job["job_id"]: job for job in json.loads(loramux("status", "--state", "state", "--json", cwd=old))["jobs"]
    }
    assert {name: job["step"] for name, job in before.items()} == {"done": 4, "later": 6, "plain": 31, "experts": 31}
    loramux("run", "--state", "state", "--exit-when-idle", "--no-supervise", "--threads", "1", cwd=old)
    after = json.loads(loramux("status", "--state", "state", "--json", cwd=old))
    assert {job["state"] for job in after["jobs"]} == {"COMPLETED"} and after["restarts"] == 0
    for name in ("plain", "experts"):
        mine, whole = tensors(old / "state" / "adapters" / name), tensors(old / "trained" / "adapters" / name)
        assert mine.keys() == whole.keys()
        for key, tensor in whole.items():
            np.testing.assert_allclose(mine[key], tensor, rtol=1e-3, atol=1e-6)
        learned = loramux("logs", name, "--state", "state", "--json", cwd=old)
        steps = [json.loads(line)["step"] for line in learned.splitlines()]
        assert steps == list(range(1, 91))  # a whole curve: no step is missing, none is there twice
    log = (old / "state" / "events.jsonl").read_text().splitlines()
    starts = [row for row in map(json.loads, log) if row["event"] == "scheduler"]
    assert len(starts) == 2
    loramux("plot", "state", "--kind", "gantt", cwd=old)
    assert list((old / "state").rglob("*.png"))

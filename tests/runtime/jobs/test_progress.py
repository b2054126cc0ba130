"""A training run that is killed or stopped goes on with the same bits, whatever the disk does."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux_runtime.jobs import evaluation, saving
from loramux_runtime.train.faults import FaultPlan
from loramux_runtime.train.progress import Progress
from loramux_runtime.train.run import TrainRun

from ...waiting import run_process
from . import killed_run
from .tiny import MIXED, job, losses, make_run, play, write_rows

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _saves_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "MOST_SHARE", 100.0)


def left(folder: Path) -> tuple[dict[tuple[str, int], Any], dict[str, bytes], dict[str, tuple[Any, ...]]]:
    """Records by job and step, adapters' files, and how each job ended."""
    rows = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    times = [row.pop("t_s") for row in rows]
    assert times == sorted(times)
    records = {(row["job_id"], row["step"]): row for row in rows}
    assert len(records) == len(rows)  # each step is there once
    adapters = folder / "adapters"
    files = {str(path.relative_to(adapters)): path.read_bytes() for path in adapters.rglob("*") if path.is_file()}
    table = [json.loads(line) for line in (folder / "jobs.jsonl").read_text().splitlines()]
    return records, files, {row["job_id"]: (row["final_state"], row["steps_done"]) for row in table}


def undisturbed(folder: Path) -> Any:
    """What a run leaves that nobody disturbed."""
    write_rows(folder)
    (folder / "whole").mkdir()
    result = killed_run.play(folder / "whole")
    assert set(result.jobs["final_state"]) == {"COMPLETED"} and not (folder / "whole" / "progress").exists()
    return left(folder / "whole")


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 40), marks=pytest.mark.slow)], ids=["few", "many"])
def test_a_run_that_is_killed_at_random_goes_on_with_the_same_bits(tmp_path: Path, seeds: range) -> None:
    whole = undisturbed(tmp_path)
    done = run_process(
        [sys.executable, "-m", "tests.runtime.jobs.killed_run", str(tmp_path), *map(str, seeds)],
        cwd=ROOT,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    assert sum(json.loads(done.stdout.splitlines()[-1]).values()) >= len(seeds)
    for seed in seeds:
        assert left(tmp_path / f"s{seed}") == whole, seed
        assert not (tmp_path / f"s{seed}" / "progress").exists()


class StopAfter:
    """Asks a run for its end after so many fused steps."""

    def __init__(self, most: int) -> None:
        self._most, self.steps = most, 0
        self._run: TrainRun

    def take(self, run: TrainRun) -> None:
        self._run = run

    def __call__(self, *_: object) -> None:
        self.steps += 1
        if self.steps == self._most:
            self._run.driver.request_stop()


def test_a_run_that_is_stopped_again_and_again_is_that_of_one_piece(tmp_path: Path) -> None:
    """Every job is saved at the stop, and the figures of the parts add up."""
    whole = undisturbed(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    steps = 0
    for part in range(40):
        stop = StopAfter(3)
        result = killed_run.play(out, began=stop.take, on_step=stop)
        steps += stop.steps
        assert result.summary["steps"] == steps and result.interruptions == part
        if not (out / "progress").exists():
            break
        standing = "\n".join(Progress.open(out).standing())
        assert "4 jobs:" in standing and "unfinished with a checkpoint" in standing
    assert part > 2 and left(out) == whole
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    arrived = [row["job_id"] for row in events if row["event"] == "arrive"]
    assert len(arrived) == len(set(arrived)) == 4
    assert [row["t_s"] for row in events] == sorted(row["t_s"] for row in events)
    spans = zip(result.timeline["segments"]["start_s"], result.timeline["segments"]["end_s"], strict=True)
    assert all(start <= end for start, end in spans)


def refusing(point: str, refuses: Callable[[int], bool]) -> FaultPlan:
    """The disk is full at some of the times that a point is reached."""
    count = [0]

    def fault(_: str, facts: dict[str, object]) -> None:
        if facts["stage"] in ("before", "tensors"):
            count[0] += 1
            if refuses(count[0]):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return FaultPlan(**{point: fault})


def test_a_full_disk_costs_checkpoints_and_no_training(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path)
    warnings: list[str] = []
    (tmp_path / "out").mkdir()
    killed_run.play(tmp_path / "out", refusing("checkpoint", lambda n: n > 4), warn=warnings.append)
    assert left(tmp_path / "out") == whole
    assert warnings and all("No space left" in text for text in warnings)
    assert "training goes on" in warnings[0]


def test_a_journal_that_is_gone_costs_no_training(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path)
    warnings: list[str] = []
    out = tmp_path / "out"
    out.mkdir()

    def remove(point: str, facts: dict[str, object]) -> None:
        (out / "progress" / "journal.sqlite").unlink(missing_ok=True)

    killed_run.play(out, FaultPlan(step=remove), warn=warnings.append)
    assert left(out) == whole
    assert any("is gone or is another file now" in text for text in warnings)


def test_a_job_whose_held_out_rows_do_not_fit_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_rows(tmp_path)
    jobs = [job(f"j{i}", data, seed=i, **kind) for i, kind in enumerate(MIXED[:3])]
    for one in jobs[1:]:
        one["data"] = {"path": str(data), "eval_rows": 3}
    jobs[2]["evaluation"] = {"every_steps": 2}
    alone = losses(play(jobs[:1], "fifo")[1])
    score, calls = evaluation.FusedModel.score, {"j1": 0, "j2": 0}

    def scored(self: Any, adapter: Any, batch: Any) -> Any:
        """The first fails at once, the second in the middle of its training."""
        calls[adapter.job_id] += 1
        if adapter.job_id == "j1" or calls["j2"] > 1:
            raise torch.OutOfMemoryError("no")
        return score(self, adapter, batch)

    monkeypatch.setattr(evaluation.FusedModel, "score", scored)
    result = play(jobs, "fifo")[1]
    table = result.jobs.set_index("job_id")
    assert table["final_state"].to_dict() == {"j0": "COMPLETED", "j1": "FAILED_OOM", "j2": "FAILED_OOM"}
    assert "held-out row" in table["reason"]["j1"] and table["steps_done"]["j2"] == 2
    assert losses(result)["j0"] == alone["j0"]


def test_a_stop_ends_the_scoring_of_held_out_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step a stop does not wait for them."""
    data = write_rows(tmp_path)
    run = make_run([{**job("a", data), "data": {"path": str(data), "eval_rows": 6}}])
    monkeypatch.setattr(evaluation, "EVAL_TOKENS", 1)
    score, calls = evaluation.FusedModel.score, [0]

    def scored(self: Any, adapter: Any, batch: Any) -> Any:
        calls[0] += 1
        run.driver.request_stop()
        return score(self, adapter, batch)

    monkeypatch.setattr(evaluation.FusedModel, "score", scored)
    result = run.play()
    assert calls == [1] and not result.training
    assert list(result.jobs["final_state"]) == ["UNFINISHED"]

"""Runs that are killed at a point of their own choice, and taken up again.

Run as a module: torch is loaded once, and each process of a run is a child of this one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from loramux_policies import create
from loramux_runtime.jobs import saving
from loramux_runtime.jobs.bases import open_base
from loramux_runtime.jobs.preparation import Preparation
from loramux_runtime.train.faults import NONE, FaultPlan
from loramux_runtime.train.progress import Progress
from loramux_runtime.train.run import TrainResult, TrainRun
from loramux_traces.filesafe import write_jsonl

from .tiny import MIXED, job, jobs_file, profile, write_rows

POINTS = (("step", 14), ("commit", 12), ("checkpoint", 70))
"""Where a process may be killed, and about how often a whole run comes there."""


def jobs(data: Path) -> list[dict[str, Any]]:
    """Four jobs of four methods; one stops early by its held-out rows, one comes later."""
    found = [job(f"j{i}", data, seed=i, **kind) for i, kind in enumerate(MIXED[:4])]
    found[0] |= {"steps": 9, "micro_batch_size": 2, "evaluation": {"every_steps": 1, "patience": 2}}
    found[0]["data"] = {"path": str(data), "eval_rows": 3}
    found[1] |= {"optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9}}
    found[3] |= {"submit_s": 0.05}
    return found


def play(
    folder: Path, faults: FaultPlan = NONE, *, began: Callable[[TrainRun], None] = lambda run: None, **options: Any
) -> TrainResult:
    """Begin a run in the folder, or go on with the one that is there; leave what `train` leaves."""
    file = jobs_file(jobs(folder.parent / "rows.jsonl"))
    base = open_base(file.base)
    again = (folder / "progress").exists()
    progress = Progress.open(folder) if again else None
    earlier = None if progress is None else progress.earlier()
    wanted = [one for one in file.jobs if earlier is None or one.id not in earlier.ended]
    prepared = Preparation(base, None).prepare_all(wanted, folder)
    if progress is None:
        settings = {"jobs": {one.id: {} for one in file.jobs}}
        progress = Progress.begin(folder, settings, {}, datetime.now(UTC))
    run = TrainRun(
        file,
        create("aspen"),
        profile(),
        base=base,
        prepared=prepared,
        adapters_dir=folder / "adapters",
        progress=progress,
        earlier=earlier,
        checkpoint_s=0.0,
        faults=faults,
        **options,
    )
    began(run)
    result = run.play()
    write_jsonl(folder / "training.jsonl", result.training)
    write_jsonl(folder / "jobs.jsonl", result.jobs.to_dict("records"))
    write_jsonl(folder / "events.jsonl", result.events)
    if not (result.jobs["final_state"] == "UNFINISHED").any():
        progress.remove()
    return result


def killer(point: str, at: int) -> FaultPlan:
    """SIGKILL when the point has been reached so many times."""
    left = [at]

    def fault(_: str, facts: dict[str, object]) -> None:
        left[0] -= 1
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return FaultPlan(**{point: fault})


def in_child(folder: Path, faults: FaultPlan) -> bool:
    """Whether a child came to the end of the run; else it was killed."""
    child = os.fork()
    if child == 0:
        try:
            play(folder, faults)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, folder
    return True


def main(folder: Path, seeds: list[int]) -> None:
    """Kill a run of each seed up to three times, at points that the seed draws."""
    torch.set_num_threads(1)
    saving.MOST_SHARE = 100.0  # type: ignore[misc]  # checkpoints as often as asked for
    write_rows(folder)
    kills = {}
    for seed in seeds:
        rng, out = random.Random(seed), folder / f"s{seed}"
        out.mkdir()
        kills[seed] = 0
        while True:
            point, often = rng.choice(POINTS)
            killed = kills[seed] < 3
            if in_child(out, killer(point, rng.randint(1, often)) if killed else NONE):
                break
            kills[seed] += 1
    sys.stdout.write(json.dumps(kills) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])

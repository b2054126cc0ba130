"""Jobs that are trained by hand, saved, and built anew.

Run as a module: train and be killed by a fault.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loramux_runtime.data import DataConfig, SampleStream, TokenisedRows
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import Part
from loramux_runtime.jobs.checkpoint import CheckpointStore
from loramux_runtime.jobs.jobs_file import TrainJob
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.train.faults import NONE, FaultPlan

from ..matrix import case, fused

STAGES = ("begin", "tensors", "state", "manifest", "synced", "renamed", "pruned")
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
    "sgd": {"name": "sgd", "lr": 0.01},
    "momentum": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
}


@cache
def model() -> FusedModel:
    """The tiny llama; tests share it."""
    return fused()


@cache
def some_rows(n: int, seed: int, salt: int = 0) -> TokenisedRows:
    """`n` random rows of 2 to 9 tokens, all learned but the first."""
    rng = np.random.default_rng(seed + 1000 * salt)
    starts = np.concatenate([[0], np.cumsum(rng.integers(2, 10, n))]).astype(np.int64)
    ids = rng.integers(3, 61, starts[-1]).astype(np.int32)
    learned = np.ones(len(ids), dtype=np.bool_)
    learned[starts[:-1]] = False
    return TokenisedRows(ids, learned, starts[:-1], starts[1:])


class Trained:
    """A job, the records of its steps, and how many rows it takes at a time."""

    def __init__(self, name: str = "lora", optimizer: Any = "adamw", *, salt: int = 0, rows: int = 2, **fields: Any):
        method, config = case(name, 0.1)
        self.rows = rows
        self.config = TrainJob(
            **{
                "id": "a",
                "method": method,
                "data": DataConfig(path=Path("none.jsonl"), eval_rows=4),
                "batch_size": 5,
                "steps": 4,
                "seed": 3,
                "optimizer": OPTIMIZERS.get(optimizer) if isinstance(optimizer, str) else optimizer,
                "schedule": {"name": "cosine", "warmup_steps": 2},
                **fields,
            }
        )
        adapter = model().new_adapter("a", method, config, seed=self.config.seed)
        train, held_out = some_rows(11, 1, salt), some_rows(4, 2)
        self.records: list[dict[str, Any]] = []
        stream = SampleStream(len(train), self.config.seed)
        self.job = TrainingJob(self.config, adapter, train, stream, held_out, log=self.records.append)

    def fused_steps(self, most: int = 10**9) -> None:
        """Train to the end, or so many fused steps."""
        self.job.begin(model())
        while most > 0 and not self.job.finished and not self.job.diverged:
            batch = self.job.peek(self.rows)
            (outcome,) = model().step([Part(adapter=self.job.adapter, batch=batch)])
            self.job.commit(batch, outcome, model())
            most -= 1


def assert_same(one: Trained, other: Trained) -> None:
    """Bit-equal jobs: parameters, gradient, moments, and every fact."""
    (mine, facts), (theirs, other_facts) = one.job.state(), other.job.state()
    assert facts["progress"].keys() == other_facts["progress"].keys()
    assert {k: repr(v) for k, v in facts["progress"].items()} == {
        k: repr(v) for k, v in other_facts["progress"].items()
    }
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, theirs[name])]
        assert torch.equal(*bits), name
    assert one.job.p_stop == other.job.p_stop


def store(folder: Path, warnings: list[str] | None = None, faults: FaultPlan = NONE, keep: int = 2) -> CheckpointStore:
    """A store whose warnings are noted."""
    return CheckpointStore(folder, keep=keep, faults=faults, warn=(warnings if warnings is not None else []).append)


def failing(stage: str, code: int = errno.ENOSPC) -> FaultPlan:
    """The operating system refuses at a stage."""

    def fault(_: str, facts: dict[str, object]) -> None:
        if facts["stage"] == stage:
            raise OSError(code, os.strerror(code))

    return FaultPlan(checkpoint=fault)


def everything(folder: Path) -> dict[str, bytes]:
    """Files by path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def litter(folder: Path) -> list[str]:
    """Hidden names anywhere."""
    return [str(p) for p in folder.rglob(".*")]


def die_in_a_save(folder: Path, stage: str, again: bool) -> None:
    """Save after 4 fused steps, train one more, and be killed at a stage of the next save.

    `again`: no further step.
    """
    trained = Trained()
    trained.fused_steps(4)
    store(folder).save("a", trained.job, {"n": 1})
    if not again:
        trained.fused_steps(1)

    def fault(_: str, facts: dict[str, object]) -> None:
        if facts["stage"] == stage:
            os.kill(os.getpid(), signal.SIGKILL)

    store(folder, faults=FaultPlan(checkpoint=fault), keep=1).save("a", trained.job, {"n": 2})


if __name__ == "__main__":
    torch.set_num_threads(1)
    model()
    for line in sys.argv[2:]:  # a child for each, so that torch is loaded once
        stage, again = line.split("+")
        child = os.fork()
        if child == 0:
            try:
                die_in_a_save(Path(sys.argv[1]) / line, stage, again == "again")
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (line, status)

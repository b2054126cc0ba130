"""The exactness contract on CPU in fp32.

A job's bits do not depend on its peers, their order, or on being paused.

Run as `python -m tests.runtime.bits_run THREADS HIDDEN FFN STEPS` for another number of threads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loramux_runtime.fused.adapters.base import Adapter
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import Part

from .matrix import NAMES, base, batch, case

Lengths = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Spec:
    """What one job trains.

    A case, its dropout, the lengths of its rows by step, tokens that are not learned.
    """

    name: str
    dropout: float
    lengths: Lengths
    prompt: int = 0


SPECS = (
    Spec("lora", 0.1, ((1,), (2, 3))),
    Spec("lora", 0.0, ((5,), (9,)), prompt=2),
    Spec("mixlora", 0.05, ((9,), (1, 1), (30, 7))),
    Spec("mixlora", 0.2, ((3,), (2,)), prompt=1),
    Spec("mola", 0.0, ((17, 4),)),
    Spec("dynmole", 0.3, ((2,), (21,))),
    Spec("mixlora-dora", 0.1, ((5, 8), (3,))),
    Spec("dora", 0.5, ((1, 2), (40,)), prompt=1),
    Spec("loramoe", 0.1, ((9, 9, 9),)),
    Spec("rslora", 0.4, ((3, 11),)),
    Spec("mixlora-part", 0.1, ((64,), (5,)), prompt=3),
    Spec("dynmole-shannon", 0.0, ((1, 5), (13,))),
)
assert {spec.name for spec in SPECS} == set(NAMES)


class Job:
    """A training job: adapter, AdamW, its own step and its losses."""

    def __init__(self, model: FusedModel, index: int) -> None:
        self.model, self.index, self.spec = model, index, SPECS[index]
        self.adapter: Adapter = model.new_adapter(f"job-{index}", *case(self.spec.name, self.spec.dropout), seed=index)
        self.optimizer = self._optimizer()
        self.losses: list[tuple[float, float]] = []
        self.parked: list[Tensor] | None = None

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([torch.nn.Parameter(self.adapter.slab.params)], lr=1e-2)

    def part(self) -> Part:
        """The next micro-batch."""
        step = len(self.losses)
        lengths = self.spec.lengths[step % len(self.spec.lengths)]
        return Part(
            adapter=self.adapter,
            batch=batch(lengths, 1000 * self.index + step, step=step, prompt=self.spec.prompt),
        )

    def apply(self, loss: float, aux: float) -> None:
        """The optimizer's step."""
        self.losses.append((loss, aux))
        slab = self.adapter.slab
        self.optimizer.param_groups[0]["params"][0].grad = slab.grads
        self.optimizer.step()
        slab.version += 1
        slab.grads.zero_()

    def pause(self) -> None:
        """Move parameters and moments out and give the slab up."""
        (state,) = self.optimizer.state.values()
        self.parked = [self.adapter.slab.params.clone(), *(state[k].clone() for k in ("exp_avg", "exp_avg_sq", "step"))]
        self.adapter.slab.params.fill_(float("nan"))
        del self.adapter, self.optimizer

    def resume(self) -> None:
        """Into a new slab and a new optimizer."""
        assert self.parked is not None
        method, config = case(self.spec.name, self.spec.dropout)
        self.adapter = self.model.new_adapter(f"job-{self.index}", method, config, seed=self.index)
        self.adapter.slab.params.copy_(self.parked[0])
        self.adapter.slab.version += 1
        self.optimizer = self._optimizer()
        parameter = self.optimizer.param_groups[0]["params"][0]
        self.optimizer.state[parameter] = dict(zip(("exp_avg", "exp_avg_sq", "step"), self.parked[1:], strict=True))
        self.parked = None


def run(model: FusedModel, order: Sequence[int], steps: int, absent: dict[int, range] | None = None) -> dict[int, Job]:
    """Train these jobs in this packed order until each has made `steps` steps.

    `absent`: fused steps during which a job is paused (from 0: it joins late).
    """
    jobs = {index: Job(model, index) for index in order}
    absent = absent or {}
    turn = 0
    while any(len(job.losses) < steps for job in jobs.values()):
        active = []
        for index, job in jobs.items():
            away = turn in absent.get(index, ())
            if away and job.parked is None and 0 < len(job.losses) < steps:
                job.pause()
            if not away and job.parked is not None:
                job.resume()
            if not away and len(job.losses) < steps:
                active.append(job)
        outcomes = model.step([job.part() for job in active]) if active else []
        for job, outcome in zip(active, outcomes, strict=True):
            job.apply(outcome.loss, outcome.aux_loss)
        turn += 1
    return jobs


def same(one: Job, other: Job) -> bool:
    """Equal parameters, moments and losses, bit for bit."""
    mine, theirs = (next(iter(job.optimizer.state.values())) for job in (one, other))
    return (
        one.losses == other.losses
        and torch.equal(one.adapter.slab.params, other.adapter.slab.params)
        and all(torch.equal(mine[key], theirs[key]) for key in ("exp_avg", "exp_avg_sq"))
    )


def scenarios(steps: int) -> dict[str, tuple[list[int], dict[int, range]]]:
    """Name -> (jobs in packed order, when they are away)."""
    every = list(range(len(SPECS)))
    away = {i: range(2 + i, 2 + i + steps // 3) for i in every[::2]}  # paused in between
    away |= {i: range(i) for i in every[1::4]}  # join late
    return {
        "all": (every, {}),
        "reversed, away": (every[::-1], away),
        "some": ([7, 2, 5, 0, 10], {}),
        "two": ([6, 3], {}),
    }


def differences(hidden: int, ffn: int, steps: int, *, recompute: bool = False) -> list[str]:
    """Every job of every scenario that differs from the job alone."""
    model = FusedModel(base(hidden_size=hidden, intermediate_size=ffn, head_dim=8))
    alone = {index: run(model, [index], steps)[index] for index in range(len(SPECS))}
    for index, job in alone.items():
        fresh = Job(model, index).adapter.slab.params
        assert not torch.equal(job.adapter.slab.params, fresh), f"{index} did not train"
        assert torch.isfinite(job.adapter.slab.params).all()
    model.recompute = recompute
    bad = []
    for name, (order, absent) in scenarios(steps).items():
        jobs = run(model, order, steps, absent)
        bad += [f"{name}: job {i} ({SPECS[i].name})" for i, job in jobs.items() if not same(job, alone[i])]
    model.recompute = False
    return bad


if __name__ == "__main__":
    threads, hidden, ffn, steps = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    bad = differences(hidden, ffn, steps)
    sys.stdout.write("\n".join(bad) or f"equal with {torch.get_num_threads()} threads\n")

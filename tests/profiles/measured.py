"""Profile records of a device that obeys known laws: what fits are tested on."""

from __future__ import annotations

from typing import Any

import numpy as np

from loramux_profiles.records import Model, ProfileRecord
from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_point import AdapterPoint, JobPoint, StepPoint
from loramux_profiles.time_features import FEATURES
from loramux_profiles.time_model import TimeModel

SHAPE = ModelShape(name="toy", hidden=64, ffn=160, layers=4, heads=4, kv_heads=2, head_dim=16, vocab=500)
METHODS = ("lora", "mixlora", "mola", "loramoe", "dynmole")


def random_step(rng: np.random.Generator, *, longest: int = 200) -> StepPoint:
    """Any step."""
    jobs = []
    for _ in range(rng.integers(1, 9)):
        method = str(rng.choice(METHODS))
        adapter = AdapterPoint(
            method=method,
            rank=int(rng.choice([4, 8, 16])),
            experts=1 if method == "lora" else int(rng.choice([2, 4, 8])),
            top_k=1 if method == "lora" else 2,
            targets="all-linear" if method == "mixlora" else str(rng.choice(["all-linear", "attention", "mlp"])),
            dropout=bool(rng.integers(2)),
            dora=method == "lora" and bool(rng.integers(2)),
        )
        lengths = tuple(int(n) for n in rng.integers(1, longest, rng.integers(1, 4)))
        jobs.append(
            JobPoint(adapter=adapter, lengths=lengths, labels=int(rng.integers(sum(lengths) - len(lengths) + 1)))
        )
    return StepPoint(jobs=tuple(jobs), recompute=bool(rng.integers(2)))


def truth() -> TimeModel:
    """A device whose every cost is known."""
    costs = {"s": 1e-3, "s/FLOP": 1e-11, "s/B": 1e-10, "s/element": 1e-9, "s/call": 1e-5, "s/parameter": 1e-9}
    return TimeModel(SHAPE, tuple(costs[unit] for unit, _ in FEATURES.values()))


def walk(point: StepPoint) -> float:
    """Stands in for the structural walk.

    Bytes that grow with tokens and jobs, and step at a maximum over jobs.
    """
    return 4e3 * point.tokens + 1e4 * len(point.jobs) + 3e3 * max(job.tokens for job in point.jobs)


def document(n: int = 120, *, seed: int = 0, noise: float = 0.0, spread: float = 0.0, **changes: Any) -> dict[str, Any]:
    """A record's content: times by `truth`, bytes 1.1 times the walk and 5,000.

    Lognormal noise on both.
    """
    rng = np.random.default_rng(seed)
    model = truth()
    rows: list[dict[str, Any]] = []
    for _ in range(n):
        point = random_step(rng)
        seconds = model.seconds(point) * np.exp(noise * rng.standard_normal())
        samples = [float(seconds * np.exp(spread * rng.standard_normal())) for _ in range(5)]
        median = float(np.median(samples))
        dynamic = round((1.1 * walk(point) + 5_000) * np.exp(noise * rng.standard_normal()))
        rows.append(
            {
                "step": point.to_dict(),
                "memory": {"dynamic": dynamic, "state": 10, "total": dynamic + 10},
                "time": {"samples": samples, "median": median, "spread": (max(samples) - min(samples)) / median},
            }
        )
    base = {
        "schema_version": 1,
        "kind": "profile",
        "device": {"name": "cpu", "kind": "cpu", "description": "made up", "memory_bytes": 1 << 30, "threads": 1},
        "model": Model.of(SHAPE, "fp32").model_dump(),
        "exact": True,
        "clock": "process",
        "versions": {"python": "3.11"},
        "commit": "",
        "date": "2026-01-02",
        "points": rows,
    }
    return {**base, **changes}


def record(n: int = 120, **options: Any) -> ProfileRecord:
    """The same, validated."""
    return ProfileRecord.model_validate(document(n, **options))

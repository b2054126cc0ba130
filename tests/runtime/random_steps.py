"""Random fused steps for tests of memory: mixed methods, ranks, lengths and shares of labels."""

from __future__ import annotations

import random

from loramux_profiles.step_point import AdapterPoint, JobPoint, StepPoint

METHODS = ("lora", "mixlora", "mola", "loramoe", "dynmole")


def random_adapter(rng: random.Random, methods: tuple[str, ...] = METHODS) -> AdapterPoint:
    """A method with its usual sizes."""
    method, dropout = rng.choice(methods), rng.random() < 0.7
    if method == "lora":
        targets = rng.choice(["all-linear", "attention", "mlp", "qv"])
        return AdapterPoint(method=method, rank=rng.choice([4, 8, 16, 24, 64]), dropout=dropout, targets=targets)
    experts: int | tuple[int, ...] = rng.choice([3, 4, 8])
    if method == "mola" and rng.random() < 0.5:
        experts = rng.choice([(2, 4), (6, 3)])
    targets = rng.choice(["all-linear", "mlp"] if method == "mixlora" else ["all-linear", "mlp", "attention"])
    top_k = rng.choice([1, 2]) if method in ("mixlora", "mola") else 2
    return AdapterPoint(
        method=method, rank=rng.choice([4, 8, 16]), experts=experts, top_k=top_k, dropout=dropout, targets=targets
    )


def random_step(rng: random.Random, methods: tuple[str, ...] = METHODS, most_jobs: int = 6) -> StepPoint:
    """1 to `most_jobs` jobs with 1 to 4 rows each."""
    jobs = []
    for _ in range(rng.randint(1, most_jobs)):
        rows, typical = rng.choice([1, 2, 4]), rng.choice([4, 15, 40, 90])
        lengths = tuple(max(2, int(rng.lognormvariate(0, 0.5) * typical)) for _ in range(rows))
        labels = int((sum(lengths) - rows) * rng.choice([0.1, 0.5, 1.0]))
        jobs.append(JobPoint(adapter=random_adapter(rng, methods), lengths=lengths, labels=labels))
    return StepPoint(jobs=tuple(jobs), recompute=rng.random() < 0.35)

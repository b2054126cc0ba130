"""This module chooses which fused steps to measure.

It makes a seeded, space-filling draw over everything that a step can vary in, and chooses among
draws what teaches most per second.

Half of the points are drawn, so that errors on them say what an ordinary step's error is (the
conformal bound needs exchangeable points). The other half is chosen D-optimally for the linear time
model, per predicted second: a short step of a rare kind beats a long one of a known kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import qmc

from loramux_profiles.step_point import METHODS, AdapterPoint, JobPoint, StepPoint
from loramux_traces.arrays import Floats

RANKS: Final = (4, 8, 16, 32, 64)
EXPERTS: Final = (2, 4, 6, 8)
TARGETS: Final = ("all-linear", "attention", "mlp", "qv")
TARGET_SHARES: Final = (0.5, 0.8, 0.95, 1.0)
"""Cumulative shares: most jobs have adapters on all linears."""
AXES: Final = 10
"""Numbers that one job takes from the low-discrepancy sequence."""
LOG_UNIFORM: Final = 0.75
"""Share of the jobs whose longest row is drawn log-uniformly; the others' is uniform."""
POOL: Final = 256
"""Draws among which the next point is chosen."""
RIDGE: Final = 1e-3
"""Added to the information matrix, which is singular at first.

It is in units of one point's squared relative feature.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Holds what the points may not exceed."""

    jobs: int = 8
    rows: int = 4
    """Rows per job."""
    length: int = 300
    """Tokens of a row; the positions that the base model has are a limit too."""
    tokens: int = 5000
    """Tokens of the whole step."""
    layers: int = 1
    """Layers of the base model: MoLA's groups of layers need as many."""


def _pick(options: tuple[int, ...], u: float) -> int:
    return options[min(len(options) - 1, int(u * len(options)))]


def _adapter(u: Floats, method: str, limits: Limits) -> AdapterPoint:
    """Make an adapter from numbers in [0, 1)."""
    experts: int | tuple[int, ...] = 1
    each = _pick(EXPERTS, u[1])
    top_k = 1
    targets = TARGETS[int(np.searchsorted(TARGET_SHARES, u[2], side="right"))]
    if method != "lora":
        experts = each
        top_k = 1 + int(u[3] * min(3, each))
        if method == "mola" and limits.layers >= 2 and u[4] < 0.4:
            experts = (2, 4, 6, 8) if limits.layers >= 4 else (2, 4)
            top_k = min(2, top_k)
        if method == "mixlora":
            targets = "all-linear" if u[2] < 0.7 else "mlp"
        if method == "loramoe":
            top_k = 1  # LoRAMoE always has all experts
    return AdapterPoint(
        method=method,
        rank=_pick(RANKS, u[0]),
        experts=experts,
        top_k=top_k,
        targets=targets,
        dropout=bool(u[5] < 0.8),
        dora=method in ("lora", "mixlora") and bool(u[4] < (0.25 if method == "lora" else 0.1)),
    )


def _job(u: Floats, method: str, limits: Limits, rng: np.random.Generator) -> JobPoint:
    rows = 1 + int(u[6] ** 2 * limits.rows)
    # Most of them are log-uniform from 1 token on: launches decide the time of the short ones, and
    # a long step costs a minute
    share = u[7] / LOG_UNIFORM
    longest = math.exp(share * math.log(limits.length)) if share < 1 else u[9] * limits.length
    lengths = tuple(max(1, round(longest * spread)) for spread in rng.uniform(0.4, 1.0, rows))
    room = sum(lengths) - rows
    learned = 1.0 if u[8] < 0.3 else (u[8] - 0.3) / 0.7
    labels = min(room, max(1, round(learned * room)))
    return JobPoint(adapter=_adapter(u, method, limits), lengths=lengths, labels=labels)


def draw(limits: Limits, *, seed: int) -> Iterator[StepPoint]:
    """Yield random steps without end.

    They vary in how many jobs they have, in one method or mixed methods, in recompute, and in every
    job's own numbers.
    """
    rng = np.random.default_rng([seed, 1])
    steps, jobs = qmc.Halton(4, seed=seed), qmc.Halton(AXES, seed=seed + 1)
    while True:
        a = steps.random(1)[0]
        count = 1 + int(a[0] * limits.jobs)
        numbers = jobs.random(count)
        one = METHODS[int(a[2] * len(METHODS))]
        mixed = a[1] < 0.6
        methods = [METHODS[int(rng.integers(len(METHODS)))] if mixed else one for _ in range(count)]
        point = StepPoint(
            jobs=tuple(_job(u, method, limits, rng) for u, method in zip(numbers, methods, strict=True)),
            recompute=bool(a[3] < 1 / 3),
        )
        if point.tokens <= limits.tokens and all(job.labels for job in point.jobs):
            yield point


class Chooser:
    """Gives the next point; drawn and chosen points take turns."""

    def __init__(
        self,
        limits: Limits,
        *,
        seed: int,
        features: Callable[[StepPoint], Floats],
        seconds: Callable[[StepPoint], float],
        core: int = 40,
    ) -> None:
        """Begin with the first `core` points drawn.

        `features` gives those of a point for the time model, and `seconds` the time it is thought
        to take.
        """
        self._draws = draw(limits, seed=seed)
        self._pool_draws = draw(limits, seed=seed + 1000)
        self._features, self._seconds, self._core = features, seconds, core
        self._pool: list[StepPoint] = []
        self._taken = 0
        self._known: set[StepPoint] = set()
        self._inverse: Floats | None = None
        self._scale: Floats | None = None

    def next(self) -> StepPoint:
        """Return what to measure next, and count it as measured."""
        drawn = self._taken < self._core or self._taken % 2 == 0
        point = self._new() if drawn else self._most_informative()
        self.learn(point)
        return point

    def learn(self, point: StepPoint) -> None:
        """Count a point as measured (`next` does it itself)."""
        self._taken += 1
        self._known.add(point)
        x = self._row(point)
        if self._inverse is None:
            self._inverse = np.eye(len(x)) / RIDGE
        v = self._inverse @ x  # Sherman-Morrison
        self._inverse -= np.outer(v, v) / (1.0 + float(x @ v))

    def _new(self) -> StepPoint:
        return next(point for point in self._draws if point not in self._known)

    def _row(self, point: StepPoint) -> Floats:
        """Return the features relative to the step's seconds, each scaled by its first size.

        They are relative because the fit minimises relative errors.
        """
        x = self._features(point) / max(self._seconds(point), 1e-9)
        if self._scale is None:
            self._scale = np.where(x > 0, x, 1.0)
        return np.asarray(x / self._scale, dtype=np.float64)

    def _most_informative(self) -> StepPoint:
        """Return the draw with the largest log(1 + predicted variance) per second."""
        while len(self._pool) < POOL:
            self._pool.append(next(point for point in self._pool_draws if point not in self._known))
        assert self._inverse is not None
        rows = np.stack([self._row(point) for point in self._pool])
        gain = np.log1p(np.einsum("ij,jk,ik->i", rows, self._inverse, rows).clip(0.0))
        costs = np.asarray([self._seconds(point) for point in self._pool])
        return self._pool.pop(int(np.argmax(gain / (costs + costs.mean()))))

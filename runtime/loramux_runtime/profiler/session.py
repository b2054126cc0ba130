"""A profiling run chooses steps and measures them block by block.

It stops when the fit is good enough or time is up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from loramux_profiles.bounds import points_needed
from loramux_profiles.regression import cross_validated, errors, relative_nnls
from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_point import StepPoint
from loramux_profiles.time_features import step_features
from loramux_profiles.time_model import TimeModel
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.profiler.grid import Chooser, Limits
from loramux_runtime.profiler.journal import Journal, record_block, unfinished
from loramux_runtime.profiler.measure import Measured
from loramux_traces.arrays import Floats

BLOCK: Final = 8
"""Steps that are kept ready and timed in turn."""
FIRST_FIT: Final = 40
"""Points before the time model is fitted for the first time.

Until then a rough guess of the seconds will do.
"""
GUESS: Final = (0.02, 2e-11)
"""Seconds of a job, and per FLOP of the frozen matrices.

They are right within a factor of a few on a CPU core; only the order of the steps' costs matters.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionReport:
    """Says how far a run has come."""

    points: int
    timed: int
    censored: int
    seconds: float
    """Seconds on the wall, since the run began or was resumed."""
    error: float | None
    """Cross-validated MAPE of the step times so far."""


@dataclass(slots=True, kw_only=True)
class Session:
    """Runs a profile of one model; the journal keeps everything, and `found` is all of it."""

    model: FusedModel
    shape: ModelShape
    journal: Journal
    seed: int = 0
    limits: Limits = field(default_factory=Limits)
    repeats: int = 5
    limit_bytes: float | None = None
    goal: float = 0.04
    """Cross-validated error of the times at which the fit is good enough."""
    most: int | None = None
    """Points after which to stop in any case."""
    tell: Callable[[SessionReport], None] = lambda progress: None
    found: list[Measured] = field(init=False)
    _error: float | None = field(init=False, default=None)
    _fitted: TimeModel | None = field(init=False, default=None)
    _began: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.found = self.journal.found

    def run(self, budget_s: float) -> str:
        """Measure until there is a reason to stop, and return the reason.

        It is "good enough", "budget" or "enough points". An exception (a signal) loses nothing that
        was measured.
        """
        self._began = time.monotonic()
        self._refit()
        chooser = Chooser(self.limits, seed=self.seed, features=self._features, seconds=self._seconds)
        for one in self.found:
            chooser.learn(one.point)
        self._measure([self.found[i] for i in unfinished(self.found, self.repeats)])
        while True:
            reason = self._over(budget_s)
            if reason is not None:
                return reason
            room = BLOCK if self.most is None else min(BLOCK, self.most - len(self.found))
            self._measure([Measured(point=chooser.next()) for _ in range(room)])
            self._refit()

    def _measure(self, block: list[Measured]) -> None:
        record_block(
            self.journal,
            self.model,
            block,
            repeats=self.repeats,
            limit_bytes=self.limit_bytes,
            seed=self.seed,
            tell=lambda one: self._report(),
        )

    def _over(self, budget_s: float) -> str | None:
        if self.most is not None and len(self.found) >= self.most:
            return "enough points"
        enough = len(self._timed()) > points_needed()  # for a bound at 1%
        if enough and self._error is not None and self._error <= self.goal:
            return "good enough"
        return "budget" if time.monotonic() - self._began >= budget_s else None

    def _timed(self) -> list[Measured]:
        return [one for one in self.found if len(one.samples) >= self.repeats]

    def _refit(self) -> None:
        timed = self._timed()
        if len(timed) < FIRST_FIT:
            return
        features: Floats = np.stack([self._features(one.point) for one in timed])
        anchor = float(np.median([one.anchor_s or 0.0 for one in timed]))
        actual = np.asarray([one.median_s * anchor / (one.anchor_s or anchor) for one in timed])
        self._fitted = TimeModel(self.shape, tuple(float(c) for c in relative_nnls(features, actual)), self.model.exact)
        self._error = errors(actual, cross_validated(features, actual, 5)).mape
        self._report()

    def _features(self, point: StepPoint) -> Floats:
        return step_features(self.shape, point, exact=self.model.exact)

    def _seconds(self, point: StepPoint) -> float:
        if self._fitted is not None:
            return max(self._fitted.seconds(point), 1e-6)
        each, flop = GUESS
        return each * len(point.jobs) + flop * 4.0 * self.shape.matmul_params * point.tokens

    def _report(self) -> None:
        self.tell(
            SessionReport(
                points=len(self.found),
                timed=len(self._timed()),
                censored=sum(one.censored for one in self.found),
                seconds=time.monotonic() - self._began,
                error=self._error,
            )
        )

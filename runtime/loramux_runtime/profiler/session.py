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
FIRST_BLOCK: Final = 2
"""Steps of the first block, which shows how far the guess of the seconds is off."""
ENDING: Final = (0.05, 2.0, 60.0)
"""Time kept for what follows the steps: copies are timed, the models fitted, files written.

It is this share of the budget, at least so many seconds (but a quarter of the budget at most) and
at most so many.
"""
FIRST_FIT: Final = 40
"""Points before the time model is fitted for the first time.

Until then a rough guess of the seconds will do.
"""
GUESS: Final = (0.02, 2e-11)
"""Seconds of a job, and per FLOP of the frozen matrices.

They are right within a factor of a few on a CPU core; only the order of the steps' costs matters.
"""


class _OutOfTimeError(Exception):
    """Means that the next measurement may not end within the budget."""


def _ending_s(budget_s: float) -> float:
    share, least, most = ENDING
    return min(max(share * budget_s, min(least, budget_s / 4)), most)


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
    next_s: float = field(init=False, default=0.0)
    """Seconds that the step was expected to take which was not begun any more."""
    _began: float = field(init=False, default=0.0)
    _end: float = field(init=False, default=float("inf"))
    """When measuring must have ended, of time.monotonic()."""
    _slowness: float | None = field(init=False, default=None)
    """Seconds on the wall per second of steps as predicted; None before the first block."""
    _longest_s: float = field(init=False, default=0.0)
    """The longest measurement of this block."""
    _last_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.found = self.journal.found

    def run(self, budget_s: float, began_s: float | None = None) -> str:
        """Measure until there is a reason to stop, and return the reason.

        It is "good enough", "budget" or "enough points". The budget is of the wall's time since
        `began_s` (of time.monotonic(); None: now), and is not exceeded: what the next steps will
        take is predicted, and a block is broken off where they take longer. An exception (a signal)
        loses nothing that was measured.
        """
        self._began = time.monotonic() if began_s is None else began_s
        self._end = self._began + budget_s - _ending_s(budget_s)
        self._refit()
        chooser = Chooser(self.limits, seed=self.seed, features=self._features, seconds=self._seconds)
        for one in self.found:
            chooser.learn(one.point)
        block = [self.found[i] for i in unfinished(self.found, self.repeats)]
        while True:
            if block and not self._measure(block):
                return "budget"
            self._refit()
            reason = self._over()
            if reason is not None:
                return reason
            block = self._block(chooser)
            if not block:
                return "budget"

    def _block(self, chooser: Chooser) -> list[Measured]:
        """Return the next steps to measure: as many as there is time for, BLOCK at most."""
        room = BLOCK if self.most is None else min(BLOCK, self.most - len(self.found))
        if self._slowness is None:
            room = min(room, FIRST_BLOCK)
        left_s = self._end - time.monotonic()
        block: list[Measured] = []
        expected_s = 0.0
        while len(block) < room:
            one = Measured(point=chooser.next())
            self.next_s = self._expected_s(one)
            if self._slowness is not None and expected_s + self.next_s > left_s:
                break
            expected_s += self.next_s
            block.append(one)
        return block

    def _expected_s(self, one: Measured) -> float:
        """Return the seconds on the wall that all measurements of a step are expected to take."""
        return (self._slowness or 1.0) * self._seconds(one.point) * (self.repeats + 1)

    def _measure(self, block: list[Measured]) -> bool:
        """Measure a block; return whether there was time for all of it."""
        expected_s = sum(self._expected_s(one) for one in block) / (self._slowness or 1.0)
        start_s = self._last_s = time.monotonic()
        self._longest_s = 0.0
        try:
            record_block(
                self.journal,
                self.model,
                block,
                repeats=self.repeats,
                limit_bytes=self.limit_bytes,
                seed=self.seed,
                tell=lambda one: self._report(),
                check=self._check,
            )
        except _OutOfTimeError:
            self.next_s = self._longest_s
            return False
        # what a step takes beside its own seconds (its states are made, garbage is sought) is in
        # the ratio; the worst of the last blocks counts
        took = (time.monotonic() - start_s) / max(expected_s, 1e-9)
        self._slowness = took if self._slowness is None else max(took, 0.7 * self._slowness)
        return True

    def _check(self) -> None:
        """Raise _OutOfTimeError where another measurement like the longest would be too much."""
        now_s = time.monotonic()
        self._longest_s = max(self._longest_s, now_s - self._last_s)
        self._last_s = now_s
        if now_s + self._longest_s > self._end:
            raise _OutOfTimeError

    def _over(self) -> str | None:
        if self.most is not None and len(self.found) >= self.most:
            return "enough points"
        enough = len(self._timed()) > points_needed()  # for a bound at 1%
        if enough and self._error is not None and self._error <= self.goal:
            return "good enough"
        return "budget" if time.monotonic() >= self._end else None

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

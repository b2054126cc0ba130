"""Clocks of a run: the real one, and one that goes by predictions (parity tests, dry runs)."""

from __future__ import annotations

import time
from typing import Protocol


class Times(Protocol):
    """Seconds from the start of the run; never backwards."""

    def now_s(self) -> float: ...
    def step_ends(self, predicted_s: float) -> None:
        """A fused step has just run."""

    def wait_until(self, t_s: float) -> None:
        """Nothing happens before that time."""


class RealTimes:
    """The monotonic clock: steps of the wall clock change nothing."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def now_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._start

    def step_ends(self, predicted_s: float) -> None:
        """Time has passed by itself."""

    def wait_until(self, t_s: float) -> None:
        """Sleep."""
        time.sleep(max(0.0, t_s - self.now_s()))


class PredictedTimes:
    """Every step takes what the cost model says: the times of a simulated run."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now_s(self) -> float:
        """Seconds of predicted time."""
        return self._now_s

    def step_ends(self, predicted_s: float) -> None:
        """Add the step."""
        self._now_s += predicted_s

    def wait_until(self, t_s: float) -> None:
        """Jump there."""
        self._now_s = max(self._now_s, t_s)

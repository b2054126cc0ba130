"""The live scheduler's clock: seconds since its state folder began, over every restart, never backwards."""

from __future__ import annotations

import time
from typing import Protocol

from loramux_policies.stepping.contracts import News
from loramux_runtime.train.times import PredictedTimes, Times, sleep_until


class LiveTimes(Times, Protocol):
    """A clock that goes on where an earlier process left it, and that can be woken."""

    def go_on_from(self, t_s: float) -> None:
        """The first reading; called before any other."""

    def ends_s(self, began_s: float, predicted_s: float) -> float | None:
        """When a step of another device that began then will have ended; None: that is to be seen."""


class MonotonicTimes:
    """The monotonic clock from a given start: steps of the wall clock change nothing."""

    def __init__(self) -> None:
        self._offset_s = -time.monotonic()

    def go_on_from(self, t_s: float) -> None:
        """Continue at `t_s`."""
        self._offset_s = t_s - time.monotonic()

    def now_s(self) -> float:
        """Seconds since the state folder began."""
        return time.monotonic() + self._offset_s

    def step_begins(self) -> None:
        """Nothing to do."""

    def step_ends(self, predicted_s: float) -> None:
        """Time has passed by itself."""

    def wait_until(self, t_s: float, news: News) -> None:
        """Sleep in short turns."""
        sleep_until(t_s, self.now_s, news)

    def ends_s(self, began_s: float, predicted_s: float) -> float | None:
        """Nobody knows."""
        return None


class PredictedLiveTimes(PredictedTimes):
    """Every step takes what the cost model says (tests, dry runs)."""

    def go_on_from(self, t_s: float) -> None:
        """Continue at `t_s`."""
        self._now_s = t_s

    def ends_s(self, began_s: float, predicted_s: float) -> float | None:
        """As predicted."""
        return began_s + predicted_s


def first_reading(last_s: float | None, last_unix_s: float | None, now_unix_s: float) -> float:
    """Where the clock goes on: the time between two processes counts, but only forwards.

    `last_s`, `last_unix_s`: what the state folder's clock and the wall clock said when the last
    process wrote last.
    """
    if last_s is None or last_unix_s is None:
        return 0.0
    return last_s + max(0.0, now_unix_s - last_unix_s)

"""This module holds the live scheduler's clock.

It gives seconds since the state folder began, over every restart, and never goes backwards.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

from loramux_policies.stepping.contracts import News
from loramux_runtime.live.state.moments import between_s, moment_of
from loramux_runtime.train.times import PredictedTimes, Times, sleep_until


class LiveTimes(Times, Protocol):
    """Describes a clock that goes on where an earlier process left it, and that can be woken."""

    def go_on_from(self, t_s: float) -> None:
        """Set the first reading; this is called before any other method."""

    def ends_s(self, began_s: float, predicted_s: float) -> float | None:
        """Return when a step of another device that began then will have ended.

        Returns None where that is not known in advance.
        """


class MonotonicTimes:
    """Reads the monotonic clock from a given start: steps of the wall clock change nothing.

    It stands still where even that clock goes backwards (a virtual machine that was moved).
    """

    def __init__(self) -> None:
        self._offset_s = -time.monotonic()
        self._last_s = 0.0

    def go_on_from(self, t_s: float) -> None:
        """Continue the clock at `t_s`."""
        self._offset_s = t_s - time.monotonic()
        self._last_s = t_s

    def now_s(self) -> float:
        """Return the seconds since the state folder began."""
        now_s = time.monotonic() + self._offset_s
        if now_s < self._last_s:
            self._offset_s += self._last_s - now_s
            now_s = self._last_s
        self._last_s = now_s
        return now_s

    def step_begins(self) -> None:
        """Do nothing: a real clock needs no mark."""

    def step_ends(self, predicted_s: float) -> None:
        """Do nothing: time has passed by itself."""

    def wait_until(self, t_s: float, news: News) -> None:
        """Sleep in short turns until that time, or until there is news."""
        sleep_until(t_s, self.now_s, news)

    def ends_s(self, began_s: float, predicted_s: float) -> float | None:
        """Return None: on a real clock the end of a step is not known in advance."""
        return None


class PredictedLiveTimes(PredictedTimes):
    """Has every step take what the cost model says (tests, dry runs)."""

    def go_on_from(self, t_s: float) -> None:
        """Continue the clock at `t_s`."""
        self._now_s = t_s

    def ends_s(self, began_s: float, predicted_s: float) -> float | None:
        """Return the predicted end of the step."""
        return began_s + predicted_s


def first_reading(last_s: float | None, facts: Mapping[str, Any], now: Mapping[str, Any]) -> float:
    """Return where the clock goes on: the time between two processes counts, but only forwards.

    `last_s`: what the state folder's clock said when the last process wrote last; `facts` of the
    folder have the moment of that (`state.moments`), `now` is another.
    """
    if last_s is None or facts.get("now_unix_s") is None:
        return 0.0
    return last_s + between_s(moment_of(facts.get("now_at"), facts["now_unix_s"]), now)

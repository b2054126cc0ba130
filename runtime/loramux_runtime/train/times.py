"""Clocks of a run: the real one, one that goes by predictions (tests, dry runs), one that repeats a recorded run."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from typing import Final, Protocol

from loramux_policies.stepping.contracts import News
from loramux_policies.stepping.replay import Moments
from loramux_policies.stepping.stream import Moment, Stream

POLL_S: Final = 0.1
"""How often a run that waits looks whether there is news."""


def sleep_until(t_s: float, now_s: Callable[[], float], news: News) -> None:
    """Sleep in short turns until that time, or until there is news."""
    while (left := t_s - now_s()) > 0.0 and not news():
        time.sleep(min(POLL_S, left))


class Times(Protocol):
    """Seconds from the start of the run; never backwards."""

    def now_s(self) -> float: ...
    def step_begins(self) -> None:
        """A fused step is about to run."""

    def step_ends(self, predicted_s: float) -> None:
        """It has run, or (0) failed."""

    def wait_until(self, t_s: float, news: News) -> None:
        """Wait: nothing happens before that time (infinity: ever), unless `news` says so."""


class RealTimes:
    """The monotonic clock: steps of the wall clock change nothing. It starts when it is first read: what is prepared
    before the run is no part of it.
    """

    def __init__(self) -> None:
        self._start: float | None = None

    def now_s(self) -> float:
        """Seconds since the run began."""
        reading = time.monotonic()
        if self._start is None:
            self._start = reading
        return reading - self._start

    def step_begins(self) -> None:
        """Nothing to do."""

    def step_ends(self, predicted_s: float) -> None:
        """Time has passed by itself."""

    def wait_until(self, t_s: float, news: News) -> None:
        """Sleep in short turns."""
        sleep_until(t_s, self.now_s, news)


class PredictedTimes:
    """Every step takes what the cost model says: the times of a simulated run."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now_s(self) -> float:
        """Seconds of predicted time."""
        return self._now_s

    def step_begins(self) -> None:
        """Nothing to do."""

    def step_ends(self, predicted_s: float) -> None:
        """Add the step."""
        self._now_s += predicted_s

    def wait_until(self, t_s: float, news: News) -> None:
        """Jump there; without a time to jump to, wait for news on the real clock."""
        if t_s < inf:
            self._now_s = max(self._now_s, t_s)
        while t_s == inf and not news():
            time.sleep(POLL_S)


class RecordedTimes:
    """The instants of a recorded run. LeftTheRecord (a StateError) where the run leaves it."""

    def __init__(self, stream: Stream) -> None:
        self._now_s = stream.begin_s
        self._moments = Moments(stream)
        self._step: Moment | None = None

    def now_s(self) -> float:
        """Seconds since the recorded run began."""
        return self._now_s

    def step_begins(self) -> None:
        """On to where the recorded step began."""
        self._step = self._moments.next("step", self._now_s)
        assert self._step.began_s is not None
        self._now_s = self._step.began_s

    def step_ends(self, predicted_s: float) -> None:
        """On to where it ended."""
        assert self._step is not None
        self._now_s = self._step.ended_s

    def wait_until(self, t_s: float, news: News) -> None:
        """On to where the recorded run went on."""
        self._now_s = self._moments.next("wait", self._now_s).ended_s

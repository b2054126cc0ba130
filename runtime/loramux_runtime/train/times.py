"""This module holds the clocks of a run.

They are the real clock, one that goes by predictions (tests, dry runs), and one that repeats a
recorded run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from typing import Final, Protocol

from loramux_policies.stepping.contracts import News
from loramux_policies.stepping.replay import Moments
from loramux_policies.stepping.stream import Moment, Stream

POLL_S: Final = 0.1
"""Seconds between two looks of a waiting run for news."""


def sleep_until(t_s: float, now_s: Callable[[], float], news: News) -> None:
    """Sleep in short turns until that time, or until there is news."""
    while (left := t_s - now_s()) > 0.0 and not news():
        time.sleep(min(POLL_S, left))


class Times(Protocol):
    """Gives the seconds from the start of the run, which never go backwards."""

    def now_s(self) -> float: ...
    def step_begins(self) -> None:
        """Note that a fused step is about to run."""

    def step_ends(self, predicted_s: float) -> None:
        """Note that the fused step has run, or (0) has failed."""

    def wait_until(self, t_s: float, news: News) -> None:
        """Wait until that time (infinity: for ever), or until `news` tells that it should end."""


class DeviceClock:
    """The part of `contracts.Devices` that is the clock of the run."""

    def __init__(self, times: Times) -> None:
        self._times = times

    @property
    def clock_s(self) -> float:
        """Seconds right now; the driver's `now_s` is that of the step boundary before it."""
        return self._times.now_s()

    def begin(self) -> float:
        """Return the first reading of the clock."""
        return self._times.now_s()

    def wait(self, until_s: float, news: News) -> float:
        """Wait until `until_s` or until there is news; return the instant."""
        self._times.wait_until(until_s, news)
        return self._times.now_s()


class RealTimes:
    """Reads the monotonic clock, on which steps of the wall clock change nothing.

    It starts when it is first read: what is prepared before the run is no part of it. `from_s`: the
    first reading, of a run that goes on.
    """

    def __init__(self, from_s: float = 0.0) -> None:
        self._start: float | None = None
        self._from_s = from_s

    def now_s(self) -> float:
        """Return the seconds since the run began."""
        reading = time.monotonic()
        if self._start is None:
            self._start = reading - self._from_s
        return reading - self._start

    def step_begins(self) -> None:
        """Do nothing: a real clock needs no mark."""

    def step_ends(self, predicted_s: float) -> None:
        """Do nothing: time has passed by itself."""

    def wait_until(self, t_s: float, news: News) -> None:
        """Sleep in short turns until that time, or until there is news."""
        sleep_until(t_s, self.now_s, news)


class PredictedTimes:
    """Has every step take what the cost model says: these are the times of a simulated run."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now_s(self) -> float:
        """Return the seconds of predicted time."""
        return self._now_s

    def step_begins(self) -> None:
        """Do nothing: predicted time passes when the step ends."""

    def step_ends(self, predicted_s: float) -> None:
        """Add the step's predicted seconds to the time."""
        self._now_s += predicted_s

    def wait_until(self, t_s: float, news: News) -> None:
        """Jump to that time; without a time to jump to, wait for news on the real clock."""
        if t_s < inf:
            self._now_s = max(self._now_s, t_s)
        while t_s == inf and not news():
            time.sleep(POLL_S)


class RecordedTimes:
    """Repeats the instants of a recorded run.

    LeftTheRecord (a StateError) where the run leaves the record.
    """

    def __init__(self, stream: Stream) -> None:
        self._now_s = stream.begin_s
        self._moments = Moments(stream)
        self._step: Moment | None = None

    def now_s(self) -> float:
        """Return the seconds since the recorded run began."""
        return self._now_s

    def step_begins(self) -> None:
        """Move on to where the recorded step began."""
        self._step = self._moments.next("step", self._now_s)
        assert self._step.began_s is not None
        self._now_s = self._step.began_s

    def step_ends(self, predicted_s: float) -> None:
        """Move on to where the recorded step ended."""
        assert self._step is not None
        self._now_s = self._step.ended_s

    def wait_until(self, t_s: float, news: News) -> None:
        """Move on to where the recorded run went on."""
        self._now_s = self._moments.next("wait", self._now_s).ended_s

"""This module keeps what admissions take at a step boundary to a small share of the time."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

SHARE: Final = 0.02
"""Largest share of the time that jobs may take that come while others train."""
LEAST: Final = 8
"""Jobs that are always taken at one boundary: few jobs that come together stay together."""


class Pace:
    """Says how long the jobs that come may hold up the next step.

    `clock_s` is the run's own clock: where time is predicted, admissions take none. `training` says
    whether any job trains; while none does there is nothing to hold up.
    """

    def __init__(self, clock_s: Callable[[], float], training: Callable[[], bool]) -> None:
        self._clock_s, self._training = clock_s, training
        self._last_s = -inf
        self._until_s = inf
        self._done = 0
        self.busy = False
        """Whether any job trains."""

    def begin(self) -> None:
        """Note that a step boundary begins, at which there is time again."""
        now_s = self._clock_s()
        self.busy = self._training()
        self._until_s = now_s + SHARE * (now_s - self._last_s) if self.busy else inf
        self._last_s, self._done = now_s, 0

    def left(self) -> bool:
        """Return whether there is time for one more; for the first few there always is."""
        self._done += 1
        return self._done <= LEAST or self._clock_s() <= self._until_s

"""This module says where the jobs of a run come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from loramux_policies.loop.job import Job
from loramux_policies.loop.scheduler import Scheduler


class Inbox(Protocol):
    """Says where jobs come from, and what users want done with them."""

    def poll(self, now_s: float) -> None:
        """Tell the loop (`Scheduler.arrive`, `withdraw`, ...) what has come by this boundary."""

    def next_s(self) -> float | None:
        """Return when something comes next; infinity: at any time; None: nothing more will come."""


class Arrivals:
    """Gives the jobs of a run whose jobs are known: each arrives at its `submit_s`.

    `arrives_s` says when a job arrives where that is another time (its rows had to be read first);
    the jobs come in that order.
    """

    def __init__(
        self, loop: Scheduler, jobs: Iterable[Job], arrives_s: Callable[[Job], float] = lambda job: job.spec.submit_s
    ) -> None:
        self._loop, self._coming, self._arrives_s = loop, iter(jobs), arrives_s
        self._next = next(self._coming, None)

    def poll(self, now_s: float) -> None:
        """Let the jobs arrive that come by that instant."""
        while self._next is not None and self._arrives_s(self._next) <= now_s:
            self._loop.arrive(self._next)
            self._next = next(self._coming, None)

    def next_s(self) -> float | None:
        """Return when the next job arrives."""
        return None if self._next is None else self._arrives_s(self._next)

"""What both fidelities share: SimPy as the clock, arrivals one at a time, reviews, and one decision per batch of events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import simpy

from loramux_policies.job import Job
from loramux_policies.scheduler import Scheduler

TIME_SLACK = 1e-12
"""Relative: two events closer than this are one batch (delays are rounded when they are added to the clock)."""


class Clock:
    """A SimPy environment that feeds arrivals and reviews to the decide-apply loop.

    Only the next arrival is ever scheduled, and callbacks hang on bare timeouts: a SimPy process per job was twelve times slower.
    """

    def __init__(self) -> None:
        self.env = simpy.Environment()
        self.loop: Scheduler
        self._decision_due = False
        self._arrivals: Iterator[Job] = iter(())
        self._next_job: Job | None = None
        self._on_decided: Callable[[], None] = lambda: None
        self._reviews: set[float] = set()

    @property
    def now_s(self) -> float:
        return float(self.env.now)

    def at(self, t_s: float, call: Callable[[Any], None], value: Any = None) -> None:
        """Call back with an event that carries `value`, at t_s (at once where that has passed)."""
        delay = t_s - self.env.now
        timeout = self.env.timeout(delay if delay > 0 else 0.0, value)
        timeout.callbacks.append(call)

    def run(self, loop: Scheduler, arrivals: Iterator[Job], on_decided: Callable[[], None]) -> None:
        """Run until nothing is left to happen. `on_decided` is called after every decision."""
        self.loop = loop
        self._arrivals = arrivals
        self._on_decided = on_decided
        self._schedule_arrival()
        self.env.run()

    def request_decision(self) -> None:
        """Have the loop decide once everything else at this time has happened."""
        if not self._decision_due:
            self._decision_due = True
            self.at(self.env.now, self._decide)

    def review_at(self, t_s: float) -> None:
        """Have the loop decide at that time."""
        if t_s not in self._reviews:
            self._reviews.add(t_s)
            self.at(t_s, self._review, t_s)

    def _schedule_arrival(self) -> None:
        self._next_job = next(self._arrivals, None)
        if self._next_job is not None:
            self.at(self._next_job.spec.submit_s, self._arrive)

    def _arrive(self, _: Any) -> None:
        job, loop = self._next_job, self.loop
        now_s = self.env.now
        horizon = now_s + TIME_SLACK * now_s
        due = False
        while job is not None and job.spec.submit_s <= horizon:
            due = loop.arrive(job) or due
            job = next(self._arrivals, None)
        self._next_job = job
        if job is not None:
            self.at(job.spec.submit_s, self._arrive)
        if due:
            self.request_decision()

    def _review(self, event: Any) -> None:
        self._reviews.discard(event.value)
        if self.loop.active:
            self.loop.review()
            self.request_decision()

    def _decide(self, _: Any) -> None:
        self._decision_due = False
        self.loop.decide()
        self._on_decided()

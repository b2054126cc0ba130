"""Provide what both fidelities share.

That is SimPy as the clock, arrivals one at a time, reviews, and one decision per batch of events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Any, Final

import simpy
from simpy.core import EmptySchedule

from loramux_policies.loop.blame import failed
from loramux_policies.loop.job import Job
from loramux_policies.loop.scheduler import Scheduler

TIME_SLACK = 1e-12
"""Relative: two events closer than this are one batch (delays are rounded when they are added to
the clock). At 1e7 s that is 10 us: jobs of a millisecond that arrive closer than that count as
simultaneous, which can reorder them.
"""
MOST_FRUITLESS: Final = 300_000
"""Decisions in a row without a job arriving or ending before the policy is taken to be stuck. A
decision that lets no time pass, or finds nothing running and nothing to arrive, counts IDLE_WEIGHT
times.
"""
IDLE_WEIGHT: Final = 100
LOOK_EVERY: Final = 500
"""Calls of place() without a job arriving or ending, after which the service given meanwhile is
checked.
"""
LEAST_SERVICE: Final = 1e-6
"""Solo-seconds per second; less than this counts as no service. A policy is stuck if it pauses jobs
and gives no service BARREN_LOOKS times in a row: every pause and resume then costs more than the
jobs can run in between.
"""
BARREN_LOOKS: Final = 4


class Call:
    """A Call is an entry of the clock's queue that calls back once with itself.

    It carries `value`. A SimPy Event keeps an environment, a state and a list of callbacks besides:
    making and ending one took three times as long (1.3 us).
    """

    __slots__ = ("call", "value")

    def __init__(self, call: Callable[[Any], None], value: Any) -> None:
        self.call = call
        self.value = value


class Environment(simpy.Environment):
    """This is SimPy's clock and queue, with entries that only call back.

    There is no process, no failure, and nothing else waits for an entry.
    """

    now: float = 0.0
    """An attribute in the place of a property, because it is read sixteen times a job."""

    def step(self) -> None:
        """Process the next entry of the queue."""
        queue: list[Any] = self._queue
        if not queue:
            raise EmptySchedule
        t_s, _, _, entry = heappop(queue)
        self._now = self.now = t_s
        entry.call(entry)

    def at(self, t_s: float, call: Callable[[Any], None], value: Any) -> None:
        """Queue a call for that time, or for now where that time has passed."""
        now_s = self.now
        delay = t_s - now_s
        queue: list[Any] = self._queue
        heappush(queue, (now_s + delay if delay > 0 else now_s, 1, next(self._eid), Call(call, value)))


class Clock:
    """A Clock is a SimPy environment that feeds arrivals and reviews to the decide-apply loop.

    Only the next arrival is ever scheduled, and callbacks hang on bare entries: a SimPy process per
    job was twelve times slower.
    """

    def __init__(self) -> None:
        self.env = Environment()
        self.at: Callable[..., None] = self.env.at
        """`Environment.at`: it calls back with an entry that carries `value`."""
        self.loop: Scheduler
        self._decision_due = False
        self._arrivals: Iterator[Job] = iter(())
        self._next_job: Job | None = None
        self._on_decided: Callable[[], None] = lambda: None
        self._held: Callable[[], bool] | None = None
        self._reviews: set[float] = set()
        self._seen_job: Job | None = None
        """The next job and, in `_seen_active`, the number of active jobs at the last decision;
        progress is a change of either.
        """
        self._seen_active = -1
        self._fruitless = 0
        self._decided_s = -1.0
        self._look_at = 0
        self._barren = 0
        self._looked: tuple[float, float, int] | None = None
        """Time, service and pauses of the active jobs at the last look."""

    def run(
        self,
        loop: Scheduler,
        arrivals: Iterator[Job],
        on_decided: Callable[[], None],
        held: Callable[[], bool] | None = None,
    ) -> None:
        """Run until nothing is left to happen.

        `on_decided` is called after every decision. `held`: while it is true, arrivals and reviews
        ask for no decision; the engine that holds them asks for one where it is due.
        """
        self._held = held
        self.loop = loop
        self._arrivals = arrivals
        self._on_decided = on_decided
        self._schedule_arrival()
        self.env.run()

    def request_decision(self) -> None:
        """Have the loop decide once everything else at this time has happened.

        It decides in this call where nothing else will happen at this time. To be called last in an
        event's callback. Deciding in the call saves an event per decision (7% of a run).
        """
        if self._decision_due:
            return
        env = self.env
        queue = env._queue
        if not queue or queue[0][0] > env.now:
            self._decide(None)
        else:
            self._decision_due = True
            self.at(env.now, self._decide, None)

    def review_at(self, t_s: float) -> None:
        """Have the loop decide at that time."""
        if t_s not in self._reviews:
            self._reviews.add(t_s)
            self.at(t_s, self._review, t_s)

    def _schedule_arrival(self) -> None:
        self._next_job = next(self._arrivals, None)
        if self._next_job is not None:
            self.at(self._next_job.spec.submit_s, self._arrive, None)

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
            self.at(job.spec.submit_s, self._arrive, None)
        if due and not (self._held and self._held()):
            self.request_decision()

    def _review(self, event: Any) -> None:
        self._reviews.discard(event.value)
        if self.loop.cluster.active:
            self.loop.review()
            if not (self._held and self._held()):
                self.request_decision()

    def _decide(self, _: Any) -> None:
        self._decision_due = False
        loop, now_s = self.loop, self.env.now
        active = len(loop.cluster.active)
        if active != self._seen_active or self._next_job is not self._seen_job:
            self._seen_job, self._seen_active, self._fruitless = self._next_job, active, 0
            self._look_at, self._barren, self._looked = loop.decisions + LOOK_EVERY, 0, None
        moving = now_s > self._decided_s and (loop.cluster.running or self._next_job is not None)
        self._decided_s = now_s
        self._fruitless += 1 if moving else IDLE_WEIGHT
        if loop.decisions >= self._look_at:
            self._look(now_s)
        if self._fruitless > MOST_FRUITLESS or self._barren > BARREN_LOOKS:
            what = "it asks for review after review, and no job arrives, starts for good or ends"
            hint = "ask for plan.review_at(t_s) and plan.review_when(job, attained_s) less often, or pause fewer jobs"
            raise failed(loop.policy, now_s, what, loop.cluster, hint, did="stalled")
        loop.decide()
        self._on_decided()

    def _look(self, now_s: float) -> None:
        """Check whether the active jobs have got any service for their pauses.

        They are the same jobs as at the last look.
        """
        loop = self.loop
        self._look_at = loop.decisions + LOOK_EVERY
        for job in loop.cluster.running.values():
            loop.backend.sync(job)
        service_s = sum([job.attained_s for job in loop.cluster.active.values()])
        pauses = sum([job.preemptions for job in loop.cluster.active.values()])
        before, self._looked = self._looked, (now_s, service_s, pauses)
        if before is None or service_s - before[1] > LEAST_SERVICE * (now_s - before[0]):
            self._barren = 0
        elif pauses > before[2]:
            self._barren += 1

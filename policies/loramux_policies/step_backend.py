"""One device that is driven from step boundary to step boundary: what training and replaying a run have in common.

Everything at a boundary happens at one instant, the clock's reading there: what the loop decides then follows from the
instants, the rows and how each step went, and that is what a recorded stream holds (`stream`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from math import inf
from typing import Any, Generic, NamedTuple

import numpy as np

from loramux_policies.backend import Floats
from loramux_policies.fused_device import FusedDevice
from loramux_policies.job import Job
from loramux_policies.ledger import Ledger
from loramux_policies.live_run import LiveRun, P
from loramux_policies.policy import Policy
from loramux_policies.scheduler import Scheduler
from loramux_policies.stream import step_row, time_row
from loramux_policies.views import FusedStep
from loramux_profiles.cost import CostModel

OUT_OF_MEMORY = "the device ran out of memory in a fused step"
Note = Callable[[dict[str, Any]], None]
"""Takes one row of the recorded stream."""


def ledger_of(cost: CostModel, seats_max: float) -> Ledger:
    """The books of the one device."""
    return Ledger(
        0,
        0,
        capacity=float(cost.capacity_bytes),
        margin=cost.upper_margin,
        padded=False,
        separate=False,
        seats_max=seats_max,
    )


class StepTimes(NamedTuple):
    """When a fused step began and ended, in seconds from the start of the run, and whether it ran out of memory."""

    began_s: float
    ended_s: float
    out_of_memory: bool
    scale: float | None = None
    """What the bound on dynamic bytes is of their expected value from now on; None: unchanged. (The online refit's.)"""


class End(NamedTuple):
    """How a job ends: `event` is finish or diverge, `detail` why."""

    event: str
    detail: str


class StepBackend(ABC, Generic[P]):
    """Backend of the decide-apply loop (contract: `backend.Backend`) for one device.

    Joins, leaves and decisions happen at step boundaries only. `note` gets the rows of the recorded stream.
    """

    def __init__(self, policy: Policy, *, note: Note | None = None) -> None:
        self.fused: FusedDevice[LiveRun[P]] = FusedDevice(0, policy, padded=False)
        self._note = note
        self._now_s = 0.0
        self._reviews: list[float] = []
        self._watched: dict[str, float] = {}
        self._seconds = 0.0
        """Mean of recent steps, for `finish_s`."""
        self._stopping = False
        self._loop: Scheduler

    # -- what is left to the kind of run

    @abstractmethod
    def _begin(self) -> float:
        """The first instant."""

    @abstractmethod
    def _train(self, step: FusedStep, predicted_s: float) -> StepTimes:
        """Carry out a fused step; its jobs' training has moved on, unless it ran out of memory."""

    @abstractmethod
    def _wait(self, until_s: float) -> float:
        """Nothing happens before then. Returns the instant at which it goes on."""

    @abstractmethod
    def _end_of(self, run: LiveRun[P]) -> End | None:
        """Whether the job has ended with the step that has just run."""

    @abstractmethod
    def _training_of(self, job: Job) -> P:
        """The state of a job that starts."""

    def _joined(self, run: LiveRun[P]) -> None:
        """The job is on the device's books."""

    def _ended(self, run: LiveRun[P]) -> None:
        """It has ended, and the loop knows."""

    def _account(self) -> None:
        """The set of residents is about to change."""

    def _queued(self) -> None:
        """The loop has decided."""

    # -- what the loop asks for

    @property
    def now_s(self) -> float:
        """The instant of the present step boundary."""
        return self._now_s

    def start(self, job: Job, devices: tuple[int, ...], share: float) -> None:
        """Bring the job's state onto the device; it takes part from the next step on."""
        self._account()
        run = job.run = LiveRun(job, job.cost_on(0), self._training_of(job))
        self.fused.add(run)
        self._joined(run)

    def set_share(self, job: Job, share: float) -> None:
        """Jobs with shares below one take turns (`loramux_policies.shares`)."""
        self.fused.reseat()

    def stop(self, job: Job) -> None:
        """Take the job off the device; partial gradients, moments and the data cursor are kept."""
        self._leave(job)

    def sync(self, job: Job) -> None:
        """Bring `done_steps` and `attained_s` up to date."""
        run: LiveRun[P] = job.run
        steps = run.training.progress_steps
        job.attained_s += (steps - job.done_steps) * run.cost.accumulation * run.cost.solo_step_s
        job.done_steps = steps

    def progress(self) -> tuple[Sequence[Job | None], Floats, Floats]:
        """Attained and remaining solo seconds of all running jobs."""
        jobs = list(self._loop.running.values())
        for job in jobs:
            self.sync(job)
        remaining = [self._loop.remaining_s(job) for job in jobs]
        return jobs, np.array([job.attained_s for job in jobs]), np.array(remaining)

    def finish_s(self, job: Job) -> float:
        """Predicted finish if nothing changes: micro-steps left at the recent step time."""
        self.sync(job)
        cost = job.cost_on(0)
        left = max(0.0, job.predicted_steps - job.done_steps) * cost.accumulation
        return self.now_s + left * (self._seconds or cost.solo_step_s)

    def review_at(self, t_s: float) -> None:
        """Call `decide` at the first step boundary from that time on."""
        heappush(self._reviews, t_s)

    def review_when(self, job: Job, attained_s: float) -> None:
        """Call `decide` at the first step boundary at which the job has attained that much."""
        self._watched[job.job_id] = min(attained_s, self._watched.get(job.job_id, inf))

    # -- the run

    def run(self, loop: Scheduler, arrivals: Iterable[Job]) -> None:
        """Until every job has ended, or `request_stop` was called."""
        self._loop = loop
        coming = iter(arrivals)
        job = next(coming, None)
        self._now_s = self._begin()
        if self._note is not None:
            self._note(time_row("begin", self._now_s))
        while not self._stopping:
            while job is not None and job.spec.submit_s <= self.now_s:
                loop.arrive(job)
                job = next(coming, None)
            if self._reviews and self._reviews[0] <= self.now_s:
                while self._reviews and self._reviews[0] <= self.now_s:
                    heappop(self._reviews)
                loop.review()
            loop.decide()
            self._queued()
            if self.fused.runs:
                self._step()
                continue
            upcoming = [self._reviews[0]] if self._reviews and loop.active else []
            if job is not None:
                upcoming.append(job.spec.submit_s)
            if not upcoming:
                break
            self._now_s = self._wait(min(upcoming))
            if self._note is not None:
                self._note(time_row("wait", self._now_s))
        if self._stopping and self._note is not None:
            self._note(time_row("stop", self._now_s))
        self._account()

    def request_stop(self) -> None:
        """End `run` at the next step boundary."""
        self._stopping = True

    def _step(self) -> None:
        fused = self.fused
        fused.ledger = self._loop.fleet[0]
        fused.now_s = self.now_s
        step = fused.next_step()
        predicted_s = fused.cost(step, memory=False).seconds
        runs = [fused.runs[entry.job_id] for entry in step.entries]
        lengths = None
        if self._note is not None:
            lengths = [run.lengths[: entry.rows] for run, entry in zip(runs, step.entries, strict=True)]
        times = self._train(step, predicted_s)
        self._now_s = times.ended_s
        if not times.out_of_memory:
            fused.advance(step)
        if times.scale is not None:
            fused.ledger.rescale(times.scale)
        if self._note is not None and lengths is not None:
            likely = {run.job_id: run.p_stop for run in runs}
            self._note(step_row(step, lengths, likely, *times))
        if times.out_of_memory:
            self._recover(runs)
            return
        seconds = times.ended_s - times.began_s
        self._seconds = seconds if self._seconds == 0.0 else 0.9 * self._seconds + 0.1 * seconds
        for run in runs:
            self._after(run)

    def _after(self, run: LiveRun[P]) -> None:
        job, loop = run.job, self._loop
        end = self._end_of(run)
        if end is None:
            watched_s = self._watched.get(job.job_id, inf)
            if watched_s < inf:
                self.sync(job)
                if job.attained_s >= watched_s:
                    del self._watched[job.job_id]
                    loop.review()
            return
        self._leave(job)
        if end.event == "finish":
            job.true_steps = job.done_steps
            loop.finish(job)
        else:
            loop.fail(job, end.event, end.detail)
        self._ended(run)

    def _leave(self, job: Job) -> None:
        """Take the job off the device's books, its figures up to date."""
        self._account()
        self.sync(job)
        self._watched.pop(job.job_id, None)
        job.run = None
        self.fused.remove(job.job_id)

    def _recover(self, runs: Sequence[LiveRun[P]]) -> None:
        """Nothing of the step counts: its jobs begin their optimizer step again (the same rows, so the same bits), and
        the newest leaves.
        """
        for run in runs:
            run.rewind()
        names = {run.job_id for run in runs}
        newest = [run for run in self.fused.runs.values() if run.job_id in names][-1].job
        self._loop.evict(newest, OUT_OF_MEMORY)

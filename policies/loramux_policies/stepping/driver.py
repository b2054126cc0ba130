"""Devices that are driven from step boundary to step boundary: what training and replaying a run have in common.

Everything at a boundary happens at one instant, the clock's reading there: what the loop decides
then follows from the instants, the rows and how each step went, and that is what a recorded stream
holds (`stream`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from math import inf
from typing import Any, Generic, NamedTuple, Protocol

import numpy as np

from loramux_policies.errors import PolicyError
from loramux_policies.loop.backend import Floats
from loramux_policies.loop.events import Event
from loramux_policies.loop.job import Job
from loramux_policies.loop.ledger import Ledger
from loramux_policies.loop.scheduler import Scheduler
from loramux_policies.policy import Policy
from loramux_policies.stepping.fused_device import FusedDevice
from loramux_policies.stepping.live_run import LiveRun, P
from loramux_policies.stepping.stream import step_row, time_row
from loramux_policies.views import FusedStep
from loramux_profiles.cost import CostModel

OUT_OF_MEMORY = "the device ran out of memory in a fused step"
GONE = "its worker died"
Note = Callable[[dict[str, Any]], None]
"""Takes one row of the recorded stream."""


def ledger_of(cost: CostModel, seats_max: float, device_id: int = 0, type_index: int = 0) -> Ledger:
    """The books of one device."""
    return Ledger(
        device_id,
        type_index,
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
    """What the bound on dynamic bytes is of their expected value from now on; None: unchanged. (The
    online refit's.)
    """


class End(NamedTuple):
    """How a job ends: with FINISH or DIVERGE, and why."""

    event: Event
    detail: str


class Inbox(Protocol):
    """Where jobs, and what users want done with them, come from."""

    def poll(self, now_s: float) -> None:
        """Tell the loop (`Scheduler.arrive`, `withdraw`, ...) what has come by this step boundary."""

    def next_s(self) -> float | None:
        """When something comes next; infinity: at any time; None: nothing more will."""


class Arrivals:
    """The inbox of a run whose jobs are known: each arrives at its `submit_s`."""

    def __init__(self, loop: Scheduler, jobs: Iterable[Job]) -> None:
        self._loop, self._coming = loop, iter(jobs)
        self._next = next(self._coming, None)

    def poll(self, now_s: float) -> None:
        """The jobs submitted by then."""
        while self._next is not None and self._next.spec.submit_s <= now_s:
            self._loop.arrive(self._next)
            self._next = next(self._coming, None)

    def next_s(self) -> float | None:
        """Submission of the next job."""
        return None if self._next is None else self._next.spec.submit_s


class StepDevice(Generic[P]):
    """One device and the step it is in."""

    def __init__(self, fused: FusedDevice[LiveRun[P]], type_index: int) -> None:
        self.fused = fused
        self.type_index = type_index
        self.step: FusedStep | None = None
        """Under way; None at a step boundary."""
        self.runs: list[LiveRun[P]] = []
        """Those of its entries."""
        self.seconds = 0.0
        """Mean of recent steps, for `finish_s`."""
        self.lengths: list[tuple[int, ...]] = []
        """Row lengths of the step's entries, where it is recorded."""


class StepBackend(ABC, Generic[P]):
    """Backend of the decide-apply loop (contract: `backend.Backend`) for devices that are driven step by step.

    Joins, leaves and decisions happen at step boundaries only: whoever is to leave a device in
    mid-step is waited for. `note` gets the rows of the recorded stream (of one device).
    """

    def __init__(self, policy: Policy, *, device_types: Sequence[int] = (0,), note: Note | None = None) -> None:
        self.devices: list[StepDevice[P]] = [
            StepDevice(FusedDevice(device_id, policy, padded=False), type_index)
            for device_id, type_index in enumerate(device_types)
        ]
        self._note = note
        self._now_s = 0.0
        self._reviews: list[float] = []
        self._watched: dict[str, float] = {}
        self._stopping = False
        self._trained: list[LiveRun[P]] = []
        """In a step that has ended, and not looked at yet."""
        self._failed: list[tuple[StepDevice[P], list[LiveRun[P]]]] = []
        """Steps that ran out of memory, not dealt with yet."""
        self._gone: list[tuple[StepDevice[P], list[LiveRun[P]]]] = []
        """Devices that are gone, and who was in the step that they were in; not dealt with yet."""
        self._loop: Scheduler

    # -- what is left to the kind of run

    @abstractmethod
    def _begin(self) -> float:
        """The first instant."""

    @abstractmethod
    def _launch(self, device: StepDevice[P], predicted_s: float) -> None:
        """Have the device carry out `device.step`."""

    @abstractmethod
    def _land(self) -> tuple[StepDevice[P], StepTimes | None]:
        """Wait for a step to end (the devices with one are at work, at least one of them); its jobs' training has moved
        on, unless it ran out of memory. None in place of the times: the device is gone.
        """

    def _sooner(self, until_s: float) -> float | None:
        """Of several devices: wait for a step to end, but not beyond `until_s`. The instant at which it goes on where
        none has ended, else None.
        """
        return None

    def _another(self) -> bool:
        """Of several devices: whether another step has ended by now."""
        return False

    def _expecting(self) -> bool:
        """Whether a device will be there that is not now."""
        return False

    @abstractmethod
    def _wait(self, until_s: float) -> float:
        """Nothing happens before then, as far as is known. Returns the instant at which it goes on."""

    @abstractmethod
    def _end_of(self, run: LiveRun[P]) -> End | None:
        """Whether the job has ended with the step that has just run."""

    @abstractmethod
    def _training_of(self, job: Job, device: StepDevice[P]) -> P:
        """The state of a job that starts on the device."""

    def _joined(self, run: LiveRun[P]) -> None:
        """The job is on its device's books."""

    def _ended(self, run: LiveRun[P]) -> None:
        """It has ended, and the loop knows."""

    def _account(self, device: StepDevice[P]) -> None:
        """The device's set of residents is about to change."""

    def _boundary(self) -> bool:
        """The loop has decided at a step boundary. True: something has changed since, it must decide again."""
        return False

    def _excused(self, error: PolicyError) -> bool:
        """Whether a policy's failure has been dealt with (`use_policy`): the turn begins anew."""
        return False

    def _stalled(self) -> bool:
        """Every device is empty, jobs wait, and the policy wants to be asked at no time: whether to ask it again."""
        return False

    # -- what the loop asks for

    @property
    def now_s(self) -> float:
        """The instant of the present step boundary."""
        return self._now_s

    def start(self, job: Job, devices: tuple[int, ...], share: float) -> None:
        """Bring the job's state onto the device; it takes part from the next step on."""
        device = self.devices[devices[0]]
        self._account(device)
        run = job.run = LiveRun(job, job.cost_on(device.type_index), self._training_of(job, device))
        device.fused.add(run)
        self._joined(run)
        if self._end_of(run) is not None:  # it ended in the very step that it was paused in
            self._trained.append(run)

    def set_share(self, job: Job, share: float) -> None:
        """Jobs with shares below one take turns (`loramux_policies.stepping.shares`)."""
        self.device_of(job).fused.reseat()

    def stop(self, job: Job) -> None:
        """Take the job off its device; partial gradients, moments and the data cursor are kept."""
        device = self.device_of(job)
        while device.step is not None and job.run in device.runs:
            self._collect()
        self._leave(job)

    def sync(self, job: Job) -> None:
        """Bring `done_steps` and `attained_s` up to date."""
        run: LiveRun[P] = job.run
        steps = run.training.progress_steps
        job.attained_s += (steps - job.done_steps) * run.cost.accumulation * run.cost.solo_step_s
        job.done_steps = steps

    def progress(self) -> tuple[Sequence[Job | None], Floats, Floats]:
        """Attained and remaining solo seconds of all running jobs."""
        jobs = list(self._loop.cluster.running.values())
        for job in jobs:
            self.sync(job)
        remaining = [self._loop.cluster.remaining_s(job) for job in jobs]
        return jobs, np.array([job.attained_s for job in jobs]), np.array(remaining)

    def finish_s(self, job: Job) -> float:
        """Predicted finish if nothing changes: micro-steps left at the recent step time."""
        self.sync(job)
        device = self.device_of(job)
        cost = job.cost_on(device.type_index)
        left = max(0.0, job.predicted_steps - job.done_steps) * cost.accumulation
        return self.now_s + left * (device.seconds or cost.solo_step_s)

    def review_at(self, t_s: float) -> None:
        """Call `decide` at the first step boundary from that time on."""
        heappush(self._reviews, t_s)

    def review_when(self, job: Job, attained_s: float) -> None:
        """Call `decide` at the first step boundary at which the job has attained that much."""
        self._watched[job.job_id] = min(attained_s, self._watched.get(job.job_id, inf))

    # -- the run

    def device_of(self, job: Job) -> StepDevice[P]:
        """Where a running job is."""
        return self.devices[job.devices[0]]

    def use_policy(self, policy: Policy) -> None:
        """Have this policy say what is fused from the next step on."""
        for device in self.devices:
            device.fused.policy = policy
        self._reviews.clear()
        self._watched.clear()

    def request_stop(self) -> None:
        """End `run` at the next step boundary."""
        self._stopping = True

    def run(self, loop: Scheduler, inbox: Inbox) -> None:
        """Until every job has ended and none will come, or `request_stop` was called."""
        self._loop = loop
        self._now_s = self._begin()
        if self._note is not None:
            self._note(time_row("begin", self._now_s))
        while not self._stopping:
            try:
                if not self._turn(loop, inbox):
                    break
            except PolicyError as error:
                if not self._excused(error):
                    raise
        while any(device.step is not None for device in self.devices):
            self._collect()
            self._follow_up()
        if self._stopping and self._note is not None:
            self._note(time_row("stop", self._now_s))
        for device in self.devices:
            self._account(device)

    def _turn(self, loop: Scheduler, inbox: Inbox) -> bool:
        """From one step boundary to the next. False where nothing is left to do."""
        inbox.poll(self._now_s)
        reviews = self._reviews
        if reviews and reviews[0] <= self._now_s:
            while reviews and reviews[0] <= self._now_s:
                heappop(reviews)
            loop.review()
        loop.decide()
        if self._boundary():
            return True
        if self._trained or self._failed or self._gone:
            self._follow_up()
            return True
        if self._stopping:
            return False
        working = False
        for device in self.devices:
            if device.step is None and device.fused.runs:
                self._take_off(device)
            working = working or device.step is not None
        if not working:
            return self._idle(loop, inbox)
        # one device answers to nothing in the middle of its step; an idle one beside it does
        if len(self.devices) > 1:
            coming = inbox.next_s()
            until_s = min(inf if coming is None else coming, reviews[0] if reviews else inf)
            instant_s = self._sooner(until_s)
            if instant_s is not None:
                self._now_s = max(self._now_s, instant_s)
                return True
        self._collect()
        while self._another():  # what happens at one instant is decided on together
            self._collect()
        self._follow_up()
        return True

    def _idle(self, loop: Scheduler, inbox: Inbox) -> bool:
        """Nothing runs: wait for what comes next. False where nothing will."""
        upcoming = [self._reviews[0]] if self._reviews and loop.cluster.active else []
        if not upcoming and len(loop.cluster.queue) and self._stalled():
            return True
        coming = inbox.next_s()
        if coming is not None:
            upcoming.append(coming)
        if self._expecting():
            upcoming.append(inf)
        if not upcoming:
            return False
        self._now_s = self._wait(min(upcoming))
        if self._note is not None:
            self._note(time_row("wait", self._now_s))
        return True

    def _take_off(self, device: StepDevice[P]) -> None:
        fused = device.fused
        fused.costs.ledger = self._loop.cluster.fleet[fused.device_id]
        fused.now_s = self._now_s
        step = fused.next_step()
        predicted_s = fused.costs.cost(step, memory=False).seconds
        device.step = step
        device.runs = [fused.runs[entry.job_id] for entry in step.entries]
        if self._note is not None:
            device.lengths = [run.lengths[: entry.rows] for run, entry in zip(device.runs, step.entries, strict=True)]
        self._launch(device, predicted_s)

    def _collect(self) -> None:
        """Wait for a step and book it. What follows from it waits for `_follow_up`, for the loop may be in the middle
        of carrying out a plan.
        """
        device, times = self._land()
        fused, step, runs = device.fused, device.step, device.runs
        assert step is not None
        device.step, device.runs = None, []
        if times is None:
            self._gone.append((device, runs))
            return
        self._now_s = max(self._now_s, times.ended_s)
        if not times.out_of_memory:
            fused.advance(step)
        if times.scale is not None:
            self._loop.cluster.fleet[fused.device_id].rescale(times.scale)
        if self._note is not None:
            likely = {run.job_id: run.p_stop for run in runs}
            self._note(step_row(step, device.lengths, likely, *times))
        if times.out_of_memory:
            for run in runs:  # the optimizer step begins again: the same rows, so the same bits
                run.rewind()
            self._failed.append((device, runs))
            return
        seconds = times.ended_s - times.began_s
        device.seconds = seconds if device.seconds == 0.0 else 0.9 * device.seconds + 0.1 * seconds
        self._trained += runs

    def _follow_up(self) -> None:
        """Ends, watches and evictions that follow from the steps that have ended."""
        while self._trained:
            run = self._trained.pop(0)
            if run.job.run is run:  # else it was taken off meanwhile
                self._after(run)
        while self._failed:
            self._recover(*self._failed.pop(0))
        while self._gone:
            self._bury(*self._gone.pop(0))

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
        if end.event == Event.FINISH:
            job.true_steps = job.done_steps
            loop.finish(job)
        else:
            loop.fail(job, end.event, end.detail)
        self._ended(run)

    def _leave(self, job: Job, *, synced: bool = False) -> None:
        """Take the job off its device's books, its figures up to date (`synced`: they are)."""
        device = self.device_of(job)
        self._account(device)
        if not synced:
            self.sync(job)
        self._watched.pop(job.job_id, None)
        job.run = None
        device.fused.remove(job.job_id)

    def _recover(self, device: StepDevice[P], runs: Sequence[LiveRun[P]]) -> None:
        """Nothing of the step counts, and the newest of its jobs leaves."""
        names = {run.job_id for run in runs}
        newest = [run for run in device.fused.runs.values() if run.job_id in names]
        if newest:
            ledger = self._loop.cluster.fleet[device.fused.device_id]
            figures = f"at most {ledger.used:.0f} bytes were expected, {ledger.capacity:.0f} are available"
            self._loop.evict(newest[-1].job, f"{OUT_OF_MEMORY} ({figures})")

    def _bury(self, device: StepDevice[P], runs: Sequence[LiveRun[P]]) -> None:
        """The device is gone, and what was on it. `runs`: in the step that it was in."""
        for run in list(device.fused.runs.values()):
            self._loop.lose(run.job, GONE)

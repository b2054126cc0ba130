"""This module drives devices from step boundary to step boundary.

Training and replaying a run share it. Everything at a boundary happens at one instant, which is the
clock's reading there. What the loop decides then follows from the instants, the rows and how each
step went, and that is what a recorded stream holds (`stream`).
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf
from typing import Final, Generic, final

from loramux_policies.errors import PolicyError
from loramux_policies.loop.events import Event
from loramux_policies.loop.job import RUNNING, WAITING, Job
from loramux_policies.loop.scheduler import Scheduler
from loramux_policies.policy import Policy
from loramux_policies.stepping.contracts import Devices, Host, Note, States, StepDevice
from loramux_policies.stepping.inbox import Inbox
from loramux_policies.stepping.live_run import LiveRun, P
from loramux_policies.stepping.residents import Residents
from loramux_policies.stepping.stream_notes import StreamNotes
from loramux_policies.views import FusedStep
from loramux_traces.arrays import Floats
from loramux_traces.errors import StateError

OUT_OF_MEMORY: Final = "the device ran out of memory in a fused step"
GONE: Final = "its worker died"


@final
class StepDriver(Generic[P]):
    """Runs devices and the states of jobs as the backend of the decide-apply loop.

    Its contract is `backend.Backend`. Joins, leaves and decisions happen at step boundaries only.
    `note` gets the rows of the recorded stream (of one device).

    Over 300 lines: it is the backend contract, the turn from one boundary to the next, and joining
    and leaving, which all work on the same books; what differs between runs is outside.
    """

    def __init__(
        self,
        residents: Residents[P],
        devices: Devices[P],
        states: States[P],
        *,
        note: Note | None = None,
    ) -> None:
        self.residents = residents
        self._devices, self._states = devices, states
        self._notes = StreamNotes(note)
        self._reviews: list[float] = []
        self._stopping = False
        self._loop: Scheduler
        self._host: Host[P]

    # -- what the loop asks for

    @property
    def now_s(self) -> float:
        """The instant of the present step boundary."""
        return self.residents.now_s

    def start(self, job: Job, devices: tuple[int, ...], share: float) -> None:
        """Bring the job's state onto the device; the job takes part from the next step on.

        Where its state is in a step elsewhere, or being made, it takes part once that has come.
        """
        self._host.residents_change(self.residents.devices[devices[0]])
        if not self._bring(job):
            self.residents.held[job.job_id] = job
            self._notes.loading("loading", self.now_s, job.job_id)

    def set_share(self, job: Job, share: float) -> None:
        """Have jobs with shares below one take turns (`loramux_policies.stepping.shares`)."""
        self.residents.device_of(job).fused.reseat()

    def stop(self, job: Job) -> None:
        """Take the job off its device; partial gradients, moments and the data cursor are kept.

        The driver waits for the step that the job is in, unless its states let it leave early.
        """
        device = self.residents.device_of(job)
        if job.job_id in self.residents.held:
            self._forget(job)
            return
        if device.step is not None and self._states.leaves_early(job.job_id):
            self._leave_early(job, device, device.step)
        else:
            while device.step is not None and job.run in device.runs:
                self._collect()
            self._leave(job)
        self._host.stopped(device)

    def sync(self, job: Job) -> None:
        """Bring `done_steps` and `attained_s` up to date."""
        self.residents.sync(job)

    def progress(self) -> tuple[Sequence[Job | None], Floats, Floats]:
        """Return all running jobs with their attained and remaining solo seconds."""
        return self.residents.progress()

    def finish_s(self, job: Job) -> float:
        """Predict the finish if nothing changes: micro-steps left, at the recent step time."""
        return self.residents.finish_s(job)

    def review_at(self, t_s: float) -> None:
        """Have the loop reviewed at the first step boundary from that time on."""
        heappush(self._reviews, t_s)

    def review_when(self, job: Job, attained_s: float) -> None:
        """Have the loop reviewed at the first boundary where the job has attained that much."""
        watched = self.residents.watched
        watched[job.job_id] = min(attained_s, watched.get(job.job_id, inf))

    # -- the run

    def use_policy(self, policy: Policy) -> None:
        """Have this policy say what is fused from the next step on."""
        for device in self.residents.devices:
            device.fused.policy = policy
        self._reviews.clear()
        self.residents.watched.clear()

    @property
    def stopping(self) -> bool:
        """Whether `run` is to end at the next step boundary."""
        return self._stopping

    def request_stop(self) -> None:
        """End `run` at the next step boundary."""
        self._stopping = True

    def settle(self, job: Job) -> None:
        """Bring the job's state here, after the step that it is in.

        StateError where that cannot be.
        """
        device_of, on_its_way = self.residents.device_of, self._states.on_its_way
        while on_its_way(job.job_id) or (job.state == RUNNING and device_of(job).step is not None):
            self._collect()
        if not self._states.at_rest(job.job_id):
            what = "its state is not to be had now (it has not begun, or its worker died)"
            raise StateError(f"{job.job_id}: {what}")

    def run(self, loop: Scheduler, inbox: Inbox, host: Host[P]) -> None:
        """Go on until every job has ended and none will come, or `request_stop` was called.

        `host` hears what happens on the way.
        """
        self._loop, self._host = loop, host
        self.residents.cluster = loop.cluster
        self.residents.now_s = self._devices.begin()
        self._notes.time("begin", self.now_s)
        while not self._stopping:
            try:
                if not self._turn(loop, inbox):
                    break
            except PolicyError as error:
                if not self._host.excused(error):
                    raise
        while any(device.step is not None for device in self.residents.devices):
            self._collect()
            self._follow_up()
        if self._stopping:
            self._notes.time("stop", self.now_s)
        for device in self.residents.devices:
            self._host.residents_change(device)

    def _turn(self, loop: Scheduler, inbox: Inbox) -> bool:
        """Go from one step boundary to the next; return False where nothing is left to do."""
        residents = self.residents
        inbox.poll(residents.now_s)
        reviews = self._reviews
        if reviews and reviews[0] <= residents.now_s:
            while reviews and reviews[0] <= residents.now_s:
                heappop(reviews)
            loop.review()
        loop.decide()
        back = self._host.devices_back()
        if (self._host.boundary() and not self._stopping) or back:
            return True
        if residents.trained or residents.failed or residents.gone:
            self._follow_up()
            return True
        if self._stopping:
            return False
        if self._take_in():
            return True
        working = False
        for device in residents.devices:
            if device.step is None and device.fused.runs:
                self._take_off(device)
            working = working or device.step is not None
        if not working:
            return self._idle(loop, inbox)
        if len(residents.devices) > 1:
            # one device does not react to anything in the middle of its step; an idle one beside it
            # does
            coming = inbox.next_s()
            until_s = min(inf if coming is None else coming, reviews[0] if reviews else inf)
            instant_s = self._devices.sooner(until_s, self._news)
            if instant_s is not None:
                residents.now_s = max(residents.now_s, instant_s)
                return True
        self._collect()
        while self._devices.another(residents.now_s):
            # decisions about things that happen at one instant are taken together
            self._collect()
        self._follow_up()
        return True

    def _idle(self, loop: Scheduler, inbox: Inbox) -> bool:
        """Wait for what comes next, as nothing runs; return False where nothing will come."""
        upcoming = [self._reviews[0]] if self._reviews and loop.cluster.active else []
        if not upcoming and len(loop.cluster.queue) and self._host.stalled():
            return True
        coming = inbox.next_s()
        if coming is not None:
            upcoming.append(coming)
        if self._host.expecting or self.residents.held:
            upcoming.append(inf)
        if not upcoming:
            return False
        self.residents.now_s = self._devices.wait(min(upcoming), self._news)
        self._notes.time("wait", self.now_s)
        return True

    def _news(self) -> bool:
        return self._stopping or self._host.news() or self._host.devices_back() or self._states.news()

    # -- steps

    def _take_off(self, device: StepDevice[P]) -> None:
        fused = device.fused
        fused.costs.ledger = self._loop.cluster.fleet[fused.device_id]
        fused.now_s = self.now_s
        step = fused.next_step()
        predicted_s = fused.costs.cost(step, memory=False).seconds
        device.step = step
        device.runs = [fused.runs[entry.job_id] for entry in step.entries]
        self._notes.takes_off(device, step)
        self._devices.launch(device, predicted_s)

    def _collect(self) -> None:
        """Wait for a step and book it.

        What follows from the step is left to `_follow_up`, because the loop may be in the middle of
        carrying out a plan.
        """
        residents = self.residents
        device, times = self._devices.land(self._host.news)
        fused, step, runs = device.fused, device.step, device.runs
        assert step is not None
        device.step, device.runs = None, []
        if times is None:
            device.left_early = False
            residents.gone.append((device, runs))
            return
        residents.now_s = max(residents.now_s, times.ended_s)
        if not times.out_of_memory:
            device.left_early = False
            fused.advance(step)
        if times.scale is not None:
            self._loop.cluster.fleet[fused.device_id].rescale(times.scale)
        self._notes.landed(device, step, runs, times)
        if times.out_of_memory:
            for run in runs:  # the optimizer step begins again: the same rows, so the same bits
                run.rewind()
            residents.failed.append((device, runs))
            return
        seconds = times.ended_s - times.began_s
        device.seconds = seconds if device.seconds == 0.0 else 0.9 * device.seconds + 0.1 * seconds
        residents.trained += runs

    def _follow_up(self) -> None:
        """Carry out the ends, watches and evictions that follow from the steps that have ended."""
        residents = self.residents
        while residents.trained:
            run = residents.trained.pop(0)
            if run.job.run is run:  # else it was taken off meanwhile
                self._after(run)
        while residents.failed:
            self._recover(*residents.failed.pop(0))
        while residents.gone:
            self._bury(*residents.gone.pop(0))

    def _after(self, run: LiveRun[P]) -> None:
        job, loop, watched = run.job, self._loop, self.residents.watched
        end = self._states.end_of(run.training)
        if end is None:
            watched_s = watched.get(job.job_id, inf)
            if watched_s < inf:
                self.sync(job)
                if job.attained_s >= watched_s:
                    del watched[job.job_id]
                    loop.review()
            return
        self._leave(job)
        if end.event == Event.FINISH:
            job.true_steps = job.done_steps
            loop.finish(job)
        else:
            loop.fail(job, end.event, end.detail)
        self._host.ended(run)

    def _recover(self, device: StepDevice[P], runs: Sequence[LiveRun[P]]) -> None:
        """Evict the newest job of a step that ran out of memory; nothing of that step counts."""
        present = list(device.fused.runs)
        lone = [run.job_id for run in runs] == present and len(present) == 1 and not device.left_early
        device.left_early = False
        names = {run.job_id for run in runs}
        newest = [run for run in device.fused.runs.values() if run.job_id in names]
        if newest:
            ledger = self._loop.cluster.fleet[device.fused.device_id]
            used, capacity = ledger.used, ledger.capacity
            figures = f"at most {used:.0f} bytes were expected, {capacity:.0f} are available"
            self._loop.evict(newest[-1].job, f"{OUT_OF_MEMORY} ({figures})")
        if lone and runs[0].job.state == WAITING:
            smaller = self._host.alone_out_of_memory(runs[0].job)
            if smaller is not None:
                self._loop.reprice(runs[0].job, smaller)

    def _bury(self, device: StepDevice[P], runs: Sequence[LiveRun[P]]) -> None:
        """Have every job that was on a device that is gone wait again."""
        in_step = {run.job_id: run.training.progress_steps for run in runs}
        in_step.update(self._states.lost(device))
        for job in self.residents.of_device(device):
            self._loop.lose(job, GONE)
        self._host.device_gone(device, in_step, ending=self._stopping)

    # -- joining and leaving

    def _take_in(self) -> bool:
        """Have those residents join whose states have come; return whether the loop must decide.

        It must where one has ended, or its state cannot be had, or a device is gone. This happens
        once between two steps, so that a recorded stream can say when it did.
        """
        held, again = self.residents.held, False
        for arrival in self._states.arrived():
            # with a fault: it joined before its device was heard of
            job = (self._loop.cluster.running if arrival.fault else held).get(arrival.job_id)
            if job is None:  # it was taken off meanwhile
                continue
            if arrival.fault:
                self._host.without_state(job, arrival)
                again = True
            elif self._bring(job):
                del held[job.job_id]
                self._notes.loading("loaded", self.now_s, job.job_id)
        return again or bool(self.residents.trained or self.residents.gone)

    def _bring(self, job: Job) -> bool:
        """Have the job join its device with its state; return False where that has not come."""
        device = self.residents.device_of(job)
        state = self._states.bring(job, device)
        if state is None:
            return False
        run = job.run = LiveRun(job, job.cost_on(device.type_index), state)
        self._join(run)
        return True

    def _join(self, run: LiveRun[P]) -> None:
        """Put a job on its device's books; its state is there already."""
        self.residents.device_of(run.job).fused.add(run)
        self._host.joined(run)
        if self._states.end_of(run.training) is not None:
            # the job ended in the very step that it was paused in
            self.residents.trained.append(run)

    def _leave(self, job: Job) -> None:
        """Take the job off its device at a step boundary, with its figures up to date."""
        self._states.take_away(job)
        self.sync(job)
        self._forget(job)

    def _leave_early(self, job: Job, device: StepDevice[P], step: FusedStep) -> None:
        """Take the job off its device in the middle of a step.

        The job is credited with the step, and its state follows.
        """
        self.sync(job)
        mine = [entry for entry in step.entries if entry.job_id == job.job_id]
        if mine:
            steps = job.run.training.progress_steps + mine[0].rows / job.spec.batch_size
            self.residents.credit(job, steps, device.type_index)
            others = tuple(entry for entry in step.entries if entry is not mine[0])
            device.step = FusedStep(step.base_model, others)
            device.runs.remove(job.run)
            device.left_early = True
        self._states.follow(job, device, in_step=bool(mine))
        self._forget(job)

    def _forget(self, job: Job) -> None:
        self._host.residents_change(self.residents.device_of(job))
        self.residents.forget(job)

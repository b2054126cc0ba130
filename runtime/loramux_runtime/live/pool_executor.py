"""The devices of a pool of workers under the decide-apply loop: decided here, trained there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Final, NamedTuple

from loramux_policies.job import RUNNING, Job
from loramux_policies.live_run import LiveRun
from loramux_policies.meters import IDLE, Meters
from loramux_policies.policy import Policy
from loramux_policies.step_backend import End, StepBackend, StepDevice, StepTimes
from loramux_policies.views import FusedStep
from loramux_profiles.step_point import AdapterPoint
from loramux_profiles.work import ROUNDING
from loramux_runtime.executor import end_of
from loramux_runtime.live.clock import POLL_S, LiveTimes
from loramux_runtime.live.leaving import Leaver, Leaving
from loramux_runtime.live.live_executor import Host, LiveBackend
from loramux_runtime.live.nursery import Nursery
from loramux_runtime.live.pool import WorkerDied, WorkerPool
from loramux_runtime.live.remote_training import RemoteTraining
from loramux_runtime.live.worker import StepReport
from loramux_runtime.observed import Observer
from loramux_runtime.packing import MicroBatch
from loramux_runtime.training_job import TrainingJob
from loramux_traces.errors import StateError

TIME_SLACK: Final = 1e-12
"""Relative: steps that are predicted to end closer together than this end at one instant (as in the simulator)."""


class Flight(NamedTuple):
    """A step under way on a worker."""

    number: int
    began_s: float
    ends_s: float | None
    """Where the clock goes by predictions."""
    parts: tuple[tuple[AdapterPoint | None, MicroBatch], ...]
    """What it trains and on what, where it is to be held against the profile."""


class PoolExecutor(LiveBackend):
    """Backend of the loop over a pool's devices, all of one type.

    A job's state is in one place: on the worker that it runs on, or (`RemoteTraining`) here. When a worker dies, its
    jobs go on as they were saved last.
    """

    def __init__(
        self,
        host: Host,
        times: LiveTimes,
        pool: WorkerPool,
        policy: Policy,
        meters: Meters,
        training: dict[str, TrainingJob],
        *,
        on_end: Callable[[Job, TrainingJob], None],
        observers: Sequence[Observer] | None = None,
        recompute: bool = False,
        hang_s: float = inf,
    ) -> None:
        super().__init__(policy, device_types=(0,) * pool.size)
        self._host, self._live_times, self._pool = host, times, pool
        self.meters = meters
        self.step_s = 0.0
        self._training = training
        self._on_end = on_end
        self._observers = observers
        self._hang_s, self._recompute = hang_s, recompute
        self._where: dict[str, int] = {}
        """The worker that a job's state is on."""
        self._flights: dict[int, Flight] = {}
        self._launched = 0
        self._landed: deque[tuple[int, StepReport | WorkerDied]] = deque()
        """Steps that have ended and are not booked yet."""
        self._peaks: dict[int, float] = {}
        self._leaving = Leaving()
        self._left_early: set[int] = set()
        """Devices whose last step somebody left while it was under way."""
        self._nursery = Nursery(pool)
        self._capacity: dict[int, float] = {}
        """Of devices that are down."""

    # -- where a job's state is

    def _remote(self, job_id: str) -> RemoteTraining:
        training = self._training[job_id]
        assert isinstance(training, RemoteTraining)
        return training

    def _training_of(self, job: Job, device: StepDevice[TrainingJob]) -> TrainingJob:
        if job.job_id not in self._training:
            self._training[job.job_id] = self._host.training_of(job)
        training = self._remote(job.job_id)
        device_id = device.fused.device_id
        if end_of(training) is None and not self._nursery.down(device_id):
            self._pool.tell(device_id, "load", training.order())
            self._where[job.job_id] = device_id
        return training

    def start(self, job: Job, devices: tuple[int, ...], share: float) -> None:
        """Bring the job's state onto the device; it takes part from the next step on, or, if its state is still in a
        step elsewhere, from when that has ended.
        """
        if job.job_id not in self._leaving:
            super().start(job, devices, share)
            return
        device = self.devices[devices[0]]
        self._account(device)
        job.run = LiveRun(job, job.cost_on(device.type_index), self._training[job.job_id])
        self._leaving.hold(job.run)

    def stop(self, job: Job) -> None:
        """Take the job off its device. In the middle of a step nobody waits for it: the job is credited with the step,
        and its state follows.
        """
        device = self.device_of(job)
        if self._leaving.held(job.job_id):
            self._account(device)
            self._leaving.release(job.job_id)
            self._watched.pop(job.job_id, None)
            job.run = None
        elif len(self.devices) > 1 and device.step is not None and job.job_id in self._where:
            self._leave_early(job, device, device.step)
        else:
            super().stop(job)

    def _leave_early(self, job: Job, device: StepDevice[TrainingJob], step: FusedStep) -> None:
        run: LiveRun[TrainingJob] = job.run
        training = self._remote(job.job_id)
        device_id = self._where.pop(job.job_id)
        self.sync(job)
        mine = [entry for entry in step.entries if entry.job_id == job.job_id]
        if mine:
            self._credit(job, training.progress_steps + mine[0].rows / training.config.batch_size)
            others = tuple(entry for entry in step.entries if entry is not mine[0])
            device.step = FusedStep(step.base_model, others)
            device.runs.remove(run)
            self._left_early.add(device_id)
        if training.whole and not mine:
            self._pool.tell(device_id, "drop", job.job_id)
        else:  # behind the step, and before whoever takes its place
            ticket = self._pool.request(device_id, "unload", job.job_id)
            self._leaving.add(Leaver(job, device_id, ticket))
        StepBackend._leave(self, job, synced=True)
        self._note_memory(device_id)

    @staticmethod
    def _credit(job: Job, steps: float) -> None:
        cost = job.cost_on(0)
        job.attained_s += (steps - job.done_steps) * cost.accumulation * cost.solo_step_s
        job.done_steps = steps

    def _settle(self, leaver: Leaver) -> WorkerDied | None:
        """The step that the job left has ended: its state is here, and it joins its new device, if it has one. The
        death of the worker where that came first: the job goes on as it was last saved.
        """
        job_id, death = leaver.job.job_id, None
        run = self._leaving.release(job_id)
        if job_id not in self._training:  # cancelled meanwhile
            return None
        job = leaver.job if run is None else run.job
        training = self._remote(job_id)
        try:
            if not (training.whole or training.diverged):
                training.take(self._pool.collect(leaver.ticket))
            self._credit(job, training.progress_steps)  # less, where the step ran out of memory
        except WorkerDied as error:
            death = error
            self._training[job_id] = self._host.training_again(job)
        job.seen = None
        if run is not None:
            device = self.device_of(job)
            run.training = self._training_of(job, device)
            run.advance(0)
            device.fused.add(run)
            self._joined(run)
            if self._end_of(run) is not None:
                self._trained.append(run)
        return death

    def sync(self, job: Job) -> None:
        """Bring `done_steps` and `attained_s` up to date."""
        if not self._leaving.held(job.job_id):  # credited already
            super().sync(job)

    def _leave(self, job: Job, *, synced: bool = False) -> None:
        self._take_back(job)
        super()._leave(job, synced=synced)
        self._note_memory(job.devices[0])

    def _take_back(self, job: Job) -> None:
        """Have the job's state here and no longer on its worker."""
        device_id = self._where.pop(job.job_id, None)
        if device_id is None:
            return
        training = self._remote(job.job_id)
        if training.whole or training.diverged:
            self._pool.tell(device_id, "drop", job.job_id)
            return
        try:
            training.take(self._pool.ask(device_id, "unload", job.job_id))
        except WorkerDied as death:
            self._lost(device_id, death)
            self._begin_again(job)

    def _begin_again(self, job: Job) -> None:
        """The job's state is gone."""
        training = self._training[job.job_id] = self._host.training_again(job)
        job.run.training = training
        job.run.advance(0)

    def at_rest(self, job_id: str) -> bool:
        """Whether the job's state can be saved now; it is fetched for that from a worker that is in no step."""
        if job_id in self._leaving:
            return False
        device_id = self._where.get(job_id)
        if device_id is None:
            return self._remote(job_id).whole
        if device_id in self._flights or self._nursery.down(device_id):
            return False
        training = self._remote(job_id)
        if not training.whole:
            try:
                training.take(self._pool.ask(device_id, "state", job_id))
            except WorkerDied as death:
                self._lost(device_id, death)
                return False
        return True

    def bring(self, job: Job) -> None:
        """Have its state here, after the step that it is in. StateError where that cannot be."""
        while job.job_id in self._leaving or (job.state == RUNNING and self.device_of(job).step is not None):
            self._collect()
        if not self.at_rest(job.job_id):
            raise StateError(f"{job.job_id}: its state is not to be had now (it has not begun, or its worker died)")

    # -- steps

    def _begin(self) -> float:
        return self._live_times.now_s()

    def _launch(self, device: StepDevice[TrainingJob], predicted_s: float) -> None:
        device_id = device.fused.device_id
        assert device.step is not None
        entries = [(entry.job_id, entry.rows) for entry in device.step.entries]
        began_s = self._live_times.now_s()
        self._launched += 1
        self._flights[device_id] = Flight(
            self._launched,
            began_s,
            self._live_times.ends_s(began_s, predicted_s),
            ()
            if self._observers is None
            else tuple((run.cost.adapter, run.training.peek(entries[i][1])) for i, run in enumerate(device.runs)),
        )
        self._pool.launch(device_id, entries)

    def _next(self) -> int | None:
        """The device whose step is predicted to end first; None where the clock is a real one."""
        ends = [(flight.ends_s, flight.number, device) for device, flight in self._flights.items()]
        known = [(end, number, device) for end, number, device in ends if end is not None]
        return min(known)[2] if known else None

    def _sooner(self, until_s: float) -> float | None:
        first = self._next()
        if first is not None:
            ends_s = self._flights[first].ends_s
            assert ends_s is not None
            if ends_s <= until_s * (1.0 + TIME_SLACK):
                return None
            self._live_times.wait_until(until_s)
            return until_s
        while not self._heard(min(POLL_S, until_s - self._live_times.now_s())):
            now_s = self._live_times.now_s()
            if now_s >= until_s or self._stopping or self._host.news() or self._look_after_workers():
                return now_s
        return None

    def _another(self) -> bool:
        if not self._flights:
            return False
        first = self._next()
        if first is None:
            return self._heard(0.0)
        ends_s = self._flights[first].ends_s
        return ends_s is not None and ends_s <= self.now_s * (1.0 + TIME_SLACK)

    def _heard(self, timeout_s: float) -> bool:
        """Whether a step has ended that is not booked yet, waiting for one that long."""
        if not self._landed:
            found = self._pool.wait(self._flights.keys(), max(0.0, timeout_s))
            if found is not None:
                self._landed.append(found)
            else:
                self._give_up_the_hung()
        return bool(self._landed)

    def _give_up_the_hung(self) -> None:
        now_s = self._live_times.now_s()
        for device_id, flight in self._flights.items():
            if flight.ends_s is None and now_s - flight.began_s > self._hang_s:
                self._landed.append((device_id, WorkerDied(f"no answer for {self._hang_s:g} s")))

    def _land(self) -> tuple[StepDevice[TrainingJob], StepTimes | None]:
        first = self._next()
        if first is not None:
            found = self._pool.wait([first], None)
            assert found is not None
            self._landed.append(found)
        while not self._heard(POLL_S):
            self._host.news()  # says that it is alive; what came in has to wait for this step
        device_id, report = self._landed.popleft()
        device, flight = self.devices[device_id], self._flights.pop(device_id)
        if flight.ends_s is not None:
            self._live_times.wait_until(flight.ends_s)
        deaths = [report] if isinstance(report, WorkerDied) else []
        if isinstance(report, StepReport):
            for job_id, about in report.jobs.items():
                if job_id in self._training:  # else it was cancelled meanwhile
                    self._remote(job_id).follow(about)
        settled = [self._settle(leaver) for leaver in self._leaving.of_device(device_id)]
        deaths += [death for death in settled if death is not None]
        if deaths or isinstance(report, WorkerDied):
            self._left_early.discard(device_id)
            self._nursery.died(device_id, str(deaths[0]), self._live_times.now_s())
            return device, None
        ended_s = self._live_times.now_s() if flight.ends_s is None else flight.ends_s
        self.step_s += report.seconds if flight.ends_s is None else ended_s - flight.began_s
        if report.peak_bytes is not None:
            self._peaks[device_id] = report.peak_bytes
        if report.out_of_memory:
            return device, StepTimes(flight.began_s, ended_s, True)
        self._left_early.discard(device_id)
        self.meters.step(device_id, report.tokens, -(-report.tokens // ROUNDING) * ROUNDING)
        return device, StepTimes(flight.began_s, ended_s, False, self._observe(device, flight, report))

    def _observe(self, device: StepDevice[TrainingJob], flight: Flight, report: StepReport) -> float | None:
        known = [(adapter, batch) for adapter, batch in flight.parts if adapter is not None]
        if self._observers is None or len(known) < len(flight.parts):
            return None
        return self._observers[device.fused.device_id].see(
            known,
            recompute=self._recompute,
            seconds=report.seconds,
            dynamic_bytes=report.dynamic_bytes,
        )

    def _end_of(self, run: LiveRun[TrainingJob]) -> End | None:
        return end_of(run.training)

    def _ended(self, run: LiveRun[TrainingJob]) -> None:
        self._on_end(run.job, run.training)
        del self._training[run.job_id]

    def _recover(self, device: StepDevice[TrainingJob], runs: Sequence[LiveRun[TrainingJob]]) -> None:
        device_id = device.fused.device_id
        if device_id in self._left_early:  # nobody was alone in it
            self._left_early.discard(device_id)
            StepBackend._recover(self, device, runs)
        else:
            super()._recover(device, runs)

    # -- workers that die

    def _lost(self, device_id: int, death: WorkerDied) -> None:
        """A worker is dead that was in no step, or whose step is lost with it."""
        if self._nursery.down(device_id):
            return
        self._nursery.died(device_id, str(death), self._live_times.now_s())
        device = self.devices[device_id]
        self._flights.pop(device_id, None)
        self._landed = deque(item for item in self._landed if item[0] != device_id)
        self._gone.append((device, device.runs))
        device.step, device.runs = None, []

    def _bury(self, device: StepDevice[TrainingJob], runs: Sequence[LiveRun[TrainingJob]]) -> None:
        device_id = device.fused.device_id
        in_step = {run.job_id: run.training.progress_steps for run in runs}
        for run in device.fused.runs.values():
            if self._where.pop(run.job_id, None) is not None:  # else it has not been sent: its state is here
                self._begin_again(run.job)
        super()._bury(device, runs)
        self._capacity[device_id] = self._capacity.get(device_id) or self._loop.fleet[device_id].capacity
        self._loop.set_capacity(device_id, 0.0)
        self._host.worker_died(device_id, self._nursery.how(device_id), in_step)
        if not self._stopping:
            self._nursery.restart(device_id)

    def _look_after_workers(self) -> bool:
        """Whether a worker has come up."""
        found = self._nursery.up(self._live_times.now_s())
        for device_id, where in found:
            self._loop.set_capacity(device_id, self._capacity.pop(device_id))
            self._host.worker_up(device_id, where)
        return bool(found)

    def _expecting(self) -> bool:
        return self._nursery.expecting

    def _wait(self, until_s: float) -> float:
        self._live_times.wait_until_news(
            until_s, lambda: self._stopping or self._host.news() or self._look_after_workers()
        )
        return self._live_times.now_s()

    # -- accounts

    def peak_bytes(self, device_id: int = 0) -> float | None:
        """Most bytes that the device has held; None where it is not known."""
        return self._peaks.get(device_id)

    def _joined(self, run: LiveRun[TrainingJob]) -> None:
        self._note_memory(run.job.devices[0])

    def _boundary(self) -> bool:
        self.meters.queue(self.now_s, self._loop.n_waiting)
        came_up = self._look_after_workers()
        return super()._boundary() or came_up

    def _account(self, device: StepDevice[TrainingJob]) -> None:
        self.meters.advance(device.fused.device_id, self.now_s, 0.0, IDLE, len(device.fused.runs))
        super()._account(device)

    def _note_memory(self, device_id: int) -> None:
        residents = len(self.devices[device_id].fused.runs)
        expected = self._loop.fleet[device_id].expected if residents else 0.0
        self.meters.memory(device_id, self.now_s, self._peaks.get(device_id, expected), residents)

"""Where the states of a pool's jobs are, and how they get from one device to another."""

from __future__ import annotations

from collections import deque

from loramux_policies.loop.job import RUNNING, Job
from loramux_policies.stepping.driver import StepBackend, StepDevice
from loramux_policies.stepping.live_run import LiveRun
from loramux_policies.views import FusedStep
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.drive.departures import Leaver, Leaving
from loramux_runtime.live.drive.flight import Flight
from loramux_runtime.live.drive.local_executor import LiveBackend
from loramux_runtime.live.drive.pool import WorkerDied, WorkerPool
from loramux_runtime.live.drive.remote_training import RemoteTraining
from loramux_runtime.live.drive.worker import StepReport
from loramux_runtime.live.drive.worker_restarts import Nursery
from loramux_runtime.train.backend import end_of
from loramux_traces.errors import StateError


class PoolStates(LiveBackend):
    """A job's state is in one place: on the worker that it runs on, on its way from one, or (`RemoteTraining`) here.
    When a worker dies, its jobs go on as they were saved last.
    """

    _pool: WorkerPool
    _nursery: Nursery
    _training: dict[str, TrainingJob]
    _where: dict[str, int]
    """The worker that a job's state is on."""
    _leaving: Leaving
    _left_early: set[int]
    """Devices whose last step somebody left while it was under way."""
    _flights: dict[int, Flight]
    _landed: deque[tuple[int, StepReport | WorkerDied]]
    """Steps that have ended and are not booked yet."""

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

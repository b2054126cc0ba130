"""This module says where the states of a pool's jobs are.

It also moves them from one device to another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from loramux_policies.loop.job import Job
from loramux_policies.stepping.contracts import Arrival, End, StepDevice
from loramux_policies.stepping.residents import Residents
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.drive.departures import Departures, Leaver
from loramux_runtime.live.drive.flights import Flights
from loramux_runtime.live.drive.live_times import LiveTimes
from loramux_runtime.live.drive.loads import Loads
from loramux_runtime.live.drive.makers import Makers
from loramux_runtime.live.drive.pool import WorkerDied, WorkerPool
from loramux_runtime.live.drive.remote_training import RemoteTraining
from loramux_runtime.live.drive.worker import JobReport
from loramux_runtime.live.drive.worker_restarts import WorkerRestarts
from loramux_runtime.train.states import end_of


class PoolStates:
    """Keeps each job's state in one place.

    That is on the worker that the job runs on, on its way from one, or here (in its
    `RemoteTraining`). When a worker dies, its jobs go on as they were saved last.
    """

    def __init__(
        self,
        residents: Residents[TrainingJob],
        pool: WorkerPool,
        times: LiveTimes,
        flights: Flights,
        restarts: WorkerRestarts,
        training: dict[str, TrainingJob],
        makers: Makers,
        *,
        find_again: Callable[[Job], TrainingJob],
    ) -> None:
        self._residents, self._pool, self._times = residents, pool, times
        self._flights, self._restarts = flights, restarts
        self._training, self._makers, self._find_again = training, makers, find_again
        self._where: dict[str, int] = {}
        """The worker that a job's state is on."""
        self._loads = Loads(pool, flights)
        self._departures = Departures()
        self._landed: list[Arrival] = []
        """Jobs whose states have come from steps that they had left early, or did not get there."""

    # -- what the driver asks for (contract: `contracts.States`)

    def bring(self, job: Job, device: StepDevice[TrainingJob]) -> TrainingJob | None:
        """Send the job to the worker, unless it has ended or the worker is down.

        None while its state is on its way, being made, or not to be had.
        """
        if job.job_id in self._departures or not self._makers.fetch(job):
            return None
        training = self._remote(job.job_id)
        device_id = device.fused.device_id
        if end_of(training) is None and not self._restarts.down(device_id):
            try:
                if not self._loads.send(job, training, device_id):
                    return None
            except WorkerDied as death:
                self._died(device_id, death)
                return None
            self._where[job.job_id] = device_id
        return training

    def arrived(self) -> list[Arrival]:
        """Return whose states have come from steps elsewhere, or have been made."""
        landed, self._landed = self._landed, []
        loaded, deaths = self._loads.arrived(self._residents.held)
        for device_id, death in deaths.items():
            self._died(device_id, death)
        return landed + loaded + self._makers.arrived()

    def news(self) -> bool:
        """Return whether a state has come since."""
        return bool(self._landed) or self._loads.news() or self._makers.news()

    def take_away(self, job: Job) -> None:
        """Have the job's state here and no longer on its worker."""
        self._loads.forget(job.job_id)
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
            self._died(device_id, death)
            self._begin_again(job)

    def end_of(self, state: TrainingJob) -> End | None:
        """Say how the job has ended, if it has."""
        return end_of(state)

    def at_rest(self, job_id: str) -> bool:
        """Return whether the state can be saved now.

        For that it is fetched from a worker that is in no step.
        """
        if job_id in self._departures:
            return False
        if job_id not in self._training:  # nothing of it is anywhere but in its checkpoint
            return True
        device_id = self._where.get(job_id)
        if device_id is None:
            return self._remote(job_id).whole
        if device_id in self._flights or self._restarts.down(device_id):
            return False
        training = self._remote(job_id)
        if not training.whole:
            try:
                training.take(self._pool.ask(device_id, "state", job_id))
            except WorkerDied as death:
                self._died(device_id, death)
                return False
        return True

    def leaves_early(self, job_id: str) -> bool:
        """Return whether the job leaves a step under way without waiting.

        It does if there are several devices and its state is on one of them.
        """
        return len(self._residents.devices) > 1 and job_id in self._where

    def follow(self, job: Job, device: StepDevice[TrainingJob], *, in_step: bool) -> None:
        """Have the worker send the job's state when its step has ended."""
        self._loads.forget(job.job_id)
        device_id = self._where.pop(job.job_id)
        if self._remote(job.job_id).whole and not in_step:
            self._pool.tell(device_id, "drop", job.job_id)
        else:
            # the call comes behind the step, and before whoever takes the job's place
            ticket = self._pool.request(device_id, "unload", job.job_id)
            self._departures.add(Leaver(job, device_id, ticket))

    def on_its_way(self, job_id: str) -> bool:
        """Return whether the state has still to come from a step that the job has left early."""
        return job_id in self._departures

    def lost(self, device: StepDevice[TrainingJob]) -> Mapping[str, float]:
        """Have the residents of a dead worker go on as they were saved last.

        Returns those whose states were on their way to it, with their optimizer steps.
        """
        for run in device.fused.runs.values():
            if self._where.pop(run.job_id, None) is not None:  # else its state is still here
                self._begin_again(run.job)
        return self._loads.lost(device.fused.device_id)

    # -- what the devices tell

    def follow_up(self, reports: Mapping[str, JobReport]) -> None:
        """Take note of how far the jobs of a step have come."""
        for job_id, report in reports.items():
            if job_id in self._training:  # else it was cancelled meanwhile
                self._remote(job_id).follow(report)

    def receive(self, device_id: int) -> list[WorkerDied]:
        """Take in the states of those who left the step that has just ended.

        Those that have a new device may join it (`arrived`). Returns the worker's deaths that came
        first: their jobs go on as they were last saved.
        """
        found = [self._settle(leaver) for leaver in self._departures.of_device(device_id)]
        deaths = [death for death in found if death is not None]
        if not deaths:
            try:
                for fault in self._loads.landed(device_id):
                    self._where.pop(fault.job_id, None)  # its state is here, as it was sent
                    self._landed.append(fault)
            except WorkerDied as death:
                deaths.append(death)
        return deaths

    def _settle(self, leaver: Leaver) -> WorkerDied | None:
        residents, job_id, death = self._residents, leaver.job.job_id, None
        if job_id not in self._training:  # cancelled meanwhile
            return None
        job = residents.held.get(job_id, leaver.job)
        training = self._remote(job_id)
        try:
            if not (training.whole or training.diverged):
                state = self._pool.collect(leaver.ticket)
                if state is not None:  # else it never got there, and is here
                    training.take(state)
            # this is less than the job was credited with where the step ran out of memory
            type_index = residents.devices[leaver.device_id].type_index
            residents.credit(job, training.progress_steps, type_index)
        except WorkerDied as error:
            death = error
            self._training[job_id] = self._find_again(job)
        job.seen = None
        self._landed.append(Arrival(job_id))
        return death

    def _died(self, device_id: int, death: WorkerDied) -> None:
        """Book the death of a worker that was in no step, or whose step is lost with it."""
        if self._restarts.down(device_id):
            return
        self._restarts.died(device_id, str(death), self._times.now_s())
        device = self._residents.devices[device_id]
        self._flights.drop(device_id)
        self._residents.gone.append((device, device.runs))
        device.step, device.runs = None, []

    def _begin_again(self, job: Job) -> None:
        """Have a job whose state is gone go on from its last saved state."""
        training = self._training[job.job_id] = self._find_again(job)
        job.run.training = training
        job.run.advance(0)

    def _remote(self, job_id: str) -> RemoteTraining:
        training = self._training[job_id]
        assert isinstance(training, RemoteTraining)
        return training

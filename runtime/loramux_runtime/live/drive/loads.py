"""This module sends the states of jobs to the workers of a pool, and hears whether they got there.

A worker makes a large state beside its steps. What goes wrong there is told of the one job, and
ends nobody else's work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loramux_policies.loop.job import Job
from loramux_policies.stepping.contracts import Arrival
from loramux_runtime.live.drive.flights import Flights
from loramux_runtime.live.drive.makers import AT_ONCE_BYTES
from loramux_runtime.live.drive.pool import WorkerDied, WorkerPool
from loramux_runtime.live.drive.remote_training import RemoteTraining


@dataclass(slots=True, eq=False)
class _Load:
    """Holds a state that has been sent, and is not known to be in its place yet."""

    job: Job
    device_id: int
    training: RemoteTraining
    prepared: bool = False
    """Whether the worker has made it, or has found that it cannot."""
    ticket: Any = None
    """Ticket for the answer to `DeviceWorker.load`; None while the state is being made."""


class Loads:
    """Keeps the states on their way to the workers."""

    def __init__(self, pool: WorkerPool, flights: Flights) -> None:
        self._pool, self._flights = pool, flights
        self._loads: dict[str, _Load] = {}
        self._found: list[Arrival] = []
        self._deaths: dict[int, WorkerDied] = {}

    def send(self, job: Job, training: RemoteTraining, device_id: int) -> bool:
        """Return whether the job can be in the worker's next step.

        If not, its state is being made there, or cannot be had (`arrived` tells). Raises
        WorkerDied. Where the worker is in a step, its answer comes with the end of that
        (`landed`): nobody waits for it.
        """
        job_id = job.job_id
        load = self._loads.get(job_id)
        if load is not None and (load.device_id != device_id or load.training is not training):
            self.forget(job_id)
            load = None
        if load is None:
            load = self._loads[job_id] = _Load(job, device_id, training)
            if job.cost_on(0).own_bytes > AT_ONCE_BYTES:
                self._pool.tell(device_id, "prepare", training.order())
                return False
        elif not load.prepared:
            return False
        load.ticket = self._pool.request(device_id, "load", job_id if load.prepared else training.order())
        if device_id in self._flights:
            return True
        fault = self._answer(load)
        if fault is not None:
            self._found.append(fault)
        return fault is None

    def landed(self, device_id: int) -> list[Arrival]:
        """Return who of those sent during the worker's step cannot be trained there, and why.

        Raises WorkerDied.
        """
        sent = [load for load in self._loads.values() if load.device_id == device_id and load.ticket is not None]
        return [fault for fault in map(self._answer, sent) if fault is not None]

    def _answer(self, load: _Load) -> Arrival | None:
        """Return why the worker cannot train the job, or None: it can."""
        answer: Arrival = self._pool.collect(load.ticket)
        del self._loads[load.job.job_id]
        return answer if answer.fault else None

    def arrived(self, held: Mapping[str, Job]) -> tuple[list[Arrival], dict[int, WorkerDied]]:
        """Return whose states have been made or cannot be, and the workers that died meanwhile.

        A state of a job that is not held any more is dropped.
        """
        for job_id, load in list(self._loads.items()):
            if load.ticket is None and job_id not in held:
                self.forget(job_id)
        self._look()
        found, self._found = self._found, []
        deaths, self._deaths = self._deaths, {}
        return found, deaths

    def news(self) -> bool:
        """Return whether `arrived` has something to tell."""
        self._look()
        return bool(self._found or self._deaths)

    def _look(self) -> None:
        """Ask the workers that make a state and are in no step: others would answer behind it."""
        making = {load.device_id for load in self._loads.values() if load.ticket is None and not load.prepared}
        for device_id in sorted(making):
            if device_id in self._flights or device_id in self._deaths:
                continue
            try:
                made = self._pool.ask(device_id, "prepared")
            except WorkerDied as death:
                self._deaths[device_id] = death
                continue
            for job_id in made:
                load = self._loads.get(job_id)
                if load is not None and load.device_id == device_id and not load.prepared:
                    load.prepared = True
                    self._found.append(Arrival(job_id))

    def forget(self, job_id: str) -> None:
        """Drop what was sent of a job that does not go there any more."""
        load = self._loads.pop(job_id, None)
        if load is not None and load.ticket is None:
            self._pool.tell(load.device_id, "drop", job_id)

    def lost(self, device_id: int) -> dict[str, float]:
        """Forget what was sent to a worker that is gone; return those jobs with their progress."""
        gone = [load for load in self._loads.values() if load.device_id == device_id]
        for load in gone:
            del self._loads[load.job.job_id]
        return {load.job.job_id: load.training.progress_steps for load in gone}

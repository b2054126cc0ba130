"""This module keeps the states of jobs that are trained in this process.

A state is on the host while its job waits, and on the device while its job runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from loramux_policies.loop.events import Event
from loramux_policies.loop.job import Job
from loramux_policies.stepping.contracts import Arrival, End, StatesHere, StepDevice
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.jobs.training_job import TrainingJob


def end_of(training: TrainingJob) -> End | None:
    """Say how the job has ended, if it has."""
    if training.diverged:
        return End(Event.DIVERGE, training.diverged)
    if training.out_of_memory:
        return End(Event.FAIL, training.out_of_memory)
    return End(Event.FINISH, "") if training.finished else None


class StateSource(Protocol):
    """Makes the states of jobs that are in memory no more, or not yet."""

    def fetch(self, job: Job) -> bool:
        """Return whether the job's state is in memory; else it is being made from now on."""

    def arrived(self) -> list[Arrival]:
        """Return whose states have been made since, or cannot be."""

    def news(self) -> bool:
        """Return whether `arrived` has somebody to name."""


class MadeAtOnce:
    """Makes a state where it is asked for, with `make` (contract: StateSource)."""

    def __init__(self, training: dict[str, TrainingJob], make: Callable[[Job], TrainingJob]) -> None:
        self._training, self._make = training, make

    def fetch(self, job: Job) -> bool:
        """Return True: the state is in memory after this."""
        if job.job_id not in self._training:
            self._training[job.job_id] = self._make(job)
        return True

    def arrived(self) -> list[Arrival]:
        """Return nobody: no state is waited for."""
        return []

    def news(self) -> bool:
        """Return False: no state is waited for."""
        return False


class LocalStates(StatesHere[TrainingJob]):
    """Moves optimizer states between the host and the one device of this process.

    `source` has the states of `training` made; `joining` is entered while a job is brought;
    `stopping` says whether the run is to end.
    """

    def __init__(
        self,
        model: FusedModel,
        training: dict[str, TrainingJob],
        source: StateSource,
        joining: Callable[[Job], AbstractContextManager[None]] = lambda job: nullcontext(),
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._model, self._training, self._source = model, training, source
        self._joining, self._stopping = joining, stopping

    def bring(self, job: Job, device: StepDevice[TrainingJob]) -> TrainingJob | None:
        """Bring the job's state onto the device, and score its held-out rows if it is new.

        None while the state is being made.
        """
        if not self._source.fetch(job):
            return None
        with self._joining(job):
            training = self._training[job.job_id]
            training.optimizer.to(self._model.base.device)
            training.begin(self._model, self._stopping)
        return training

    def arrived(self) -> list[Arrival]:
        """Return whose states have been made since, or cannot be."""
        return self._source.arrived()

    def news(self) -> bool:
        """Return whether a state has been made since."""
        return self._source.news()

    def take_away(self, job: Job) -> None:
        """Copy the job's state to the host.

        Partial gradients, moments and the data cursor are kept.
        """
        self._training[job.job_id].optimizer.to("cpu")

    def end_of(self, state: TrainingJob) -> End | None:
        """Say how the job has ended, if it has."""
        return end_of(state)

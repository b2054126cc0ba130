"""This module keeps the states of jobs that are trained in this process.

A state is on the host while its job waits, and on the device while its job runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from loramux_policies.loop.events import Event
from loramux_policies.loop.job import Job
from loramux_policies.stepping.contracts import End, StatesHere, StepDevice
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.jobs.training_job import TrainingJob


def end_of(training: TrainingJob) -> End | None:
    """Say how the job has ended, if it has."""
    if training.diverged:
        return End(Event.DIVERGE, training.diverged)
    if training.out_of_memory:
        return End(Event.FAIL, training.out_of_memory)
    return End(Event.FINISH, "") if training.finished else None


class LocalStates(StatesHere[TrainingJob]):
    """Moves optimizer states between the host and the one device of this process.

    `find` makes the state of a job that is in memory no more, or not yet (None: all of them are);
    `joining` is entered while a job is brought; `stopping` says whether the run is to end.
    """

    def __init__(
        self,
        model: FusedModel,
        training: dict[str, TrainingJob],
        find: Callable[[Job], TrainingJob] | None = None,
        joining: Callable[[Job], AbstractContextManager[None]] = lambda job: nullcontext(),
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._model, self._training, self._find = model, training, find
        self._joining, self._stopping = joining, stopping

    def bring(self, job: Job, device: StepDevice[TrainingJob]) -> TrainingJob:
        """Bring the job's state onto the device, and score its held-out rows if it is new."""
        with self._joining(job):
            if self._find is not None and job.job_id not in self._training:
                self._training[job.job_id] = self._find(job)
            training = self._training[job.job_id]
            training.optimizer.to(self._model.base.device)
            training.begin(self._model, self._stopping)
        return training

    def take_away(self, job: Job) -> None:
        """Copy the job's state to the host.

        Partial gradients, moments and the data cursor are kept.
        """
        self._training[job.job_id].optimizer.to("cpu")

    def end_of(self, state: TrainingJob) -> End | None:
        """Say how the job has ended, if it has."""
        return end_of(state)

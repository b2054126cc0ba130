"""This module says what follows from the events of `loramux train`.

Accounts are kept, and a job that has ended is handed over.
"""

from __future__ import annotations

from collections.abc import Callable

from loramux_policies.loop.job import Job
from loramux_policies.stepping.contracts import Host, StepDevice
from loramux_policies.stepping.live_run import LiveRun
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.train.accounts import Accounts


class TrainHost(Host[TrainingJob]):
    """Keeps the accounts and hands over the jobs that have ended.

    `on_end` gets each job that has ended, which is then dropped from `training`; `at_boundary` is
    called between steps.
    """

    def __init__(
        self,
        accounts: Accounts,
        training: dict[str, TrainingJob],
        on_end: Callable[[Job, TrainingJob], None],
        at_boundary: Callable[[], None] = lambda: None,
    ) -> None:
        self._accounts, self._training, self.on_end = accounts, training, on_end
        self._at_boundary = at_boundary

    def residents_change(self, device: StepDevice[TrainingJob]) -> None:
        """Account for the time up to now."""
        self._accounts.residents_change(device)

    def joined(self, run: LiveRun[TrainingJob]) -> None:
        """Note the device's memory with the new resident."""
        self._accounts.note_memory(run.job.devices[0])

    def stopped(self, device: StepDevice[TrainingJob]) -> None:
        """Note the device's memory without the job."""
        self._accounts.note_memory(device.fused.device_id)

    def ended(self, run: LiveRun[TrainingJob]) -> None:
        """Hand the job over and forget it."""
        self._accounts.note_memory(0)
        self.on_end(run.job, run.training)
        self._training.pop(run.job_id, None)

    def boundary(self) -> bool:
        """Note the queue; nothing here makes the loop decide again."""
        self._accounts.note_queue()
        self._at_boundary()
        return False

"""The torch backend as the live scheduler drives it: what happens at its hooks is said by a `Host`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from loramux_policies.errors import PolicyError
from loramux_policies.loop.job import WAITING, Job
from loramux_policies.stepping.driver import StepDevice, StepTimes
from loramux_policies.stepping.live_run import LiveRun
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.drive.clock import LiveTimes
from loramux_runtime.train.backend import TrainingBackend
from loramux_runtime.train.executor import Executor


class Host(Protocol):
    """Who keeps the jobs of a live executor."""

    def training_of(self, job: Job) -> TrainingJob:
        """Training state of a job that starts, from memory, from a checkpoint, or from its first step."""

    def training_again(self, job: Job) -> TrainingJob:
        """The same for a job whose state is lost: as it was saved last. The job's figures are set back to that."""

    def joins(self, job: Job) -> None:
        """A job's state is about to be brought onto its device."""

    def joined(self) -> None:
        """It has been brought."""

    def step_follows(self, runs: Sequence[LiveRun[TrainingJob]]) -> None:
        """A fused step with these jobs is about to run."""

    def boundary(self) -> bool:
        """The loop has decided at a step boundary. True: something has changed since, it must decide again."""

    def excused(self, error: PolicyError) -> bool:
        """Another policy has taken the place of one that failed."""

    def stalled(self) -> bool:
        """The policy leaves the device empty; True: another has taken its place."""

    def news(self) -> bool:
        """Whether an idle device has reason to stop waiting."""

    def alone_out_of_memory(self, job: Job) -> Job | None:
        """The job ran out of memory with nobody beside it: the same with a smaller micro-batch, or None."""

    def residents_change(self) -> None:
        """A job is about to join or to leave."""

    def worker_died(self, device_id: int, how: str, in_step: Mapping[str, float]) -> None:
        """A device is gone, and its jobs wait again. `in_step`: those of the step that it was in, with the optimizer
        steps that they had done.
        """

    def worker_up(self, device_id: int, where: str) -> None:
        """A device is there again."""


class LiveBackend(TrainingBackend):
    """What every executor of a scheduler that lasts has."""

    step_s: float
    """Spent in fused steps so far; the rest of the time with residents is the scheduler's own."""
    _host: Host
    _live_times: LiveTimes

    @property
    def clock_s(self) -> float:
        """The time right now; `now_s` is that of the step boundary before it."""
        return self._live_times.now_s()

    @abstractmethod
    def at_rest(self, job_id: str) -> bool:
        """Whether the job's state can be saved now, all of it being here."""

    @abstractmethod
    def bring(self, job: Job) -> None:
        """Have its state here, after the step that it is in. StateError where that cannot be."""

    def _wait(self, until_s: float) -> float:
        self._live_times.wait_until_news(until_s, lambda: self._stopping or self._host.news())
        return self._live_times.now_s()

    def _boundary(self) -> bool:
        super()._boundary()
        return self._host.boundary() and not self._stopping

    def _excused(self, error: PolicyError) -> bool:
        return self._host.excused(error)

    def _stalled(self) -> bool:
        return self._host.stalled()

    def _account(self, device: StepDevice[TrainingJob]) -> None:
        super()._account(device)
        self._host.residents_change()

    def _recover(self, device: StepDevice[TrainingJob], runs: Sequence[LiveRun[TrainingJob]]) -> None:
        alone = runs[0].job if runs and len(device.fused.runs) == 1 else None
        super()._recover(device, runs)
        if alone is not None and alone.state == WAITING:
            smaller = self._host.alone_out_of_memory(alone)
            if smaller is not None:
                self._loop.reprice(alone, smaller)


class LiveExecutor(LiveBackend, Executor):
    """Executor of a scheduler that lasts."""

    def __init__(self, host: Host, times: LiveTimes, *arguments: Any, **options: Any) -> None:
        Executor.__init__(self, *arguments, times=times, **options)
        self._host = host
        self.step_s = 0.0
        self._live_times = times

    def at_rest(self, job_id: str) -> bool:
        """Always: nothing happens between two steps."""
        return True

    def bring(self, job: Job) -> None:
        """It is here."""

    def _training_of(self, job: Job, device: StepDevice[TrainingJob]) -> TrainingJob:
        self._host.joins(job)
        if job.job_id not in self._training:
            self._training[job.job_id] = self._host.training_of(job)
        training = super()._training_of(job, device)
        self._host.joined()
        return training

    def _launch(self, device: StepDevice[TrainingJob], predicted_s: float) -> None:
        super()._launch(device, predicted_s)
        self._host.step_follows(device.runs)

    def _land(self) -> tuple[StepDevice[TrainingJob], StepTimes]:
        device, times = Executor._land(self)
        self.step_s += times.ended_s - times.began_s
        return device, times

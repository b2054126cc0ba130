"""What every backend that trains has, on the device of this process or on others: ends, and accounts of its devices."""

from __future__ import annotations

from abc import abstractmethod

from loramux_policies.loop.events import Event
from loramux_policies.loop.meters import IDLE, Meters
from loramux_policies.stepping.driver import End, StepBackend, StepDevice
from loramux_policies.stepping.live_run import LiveRun
from loramux_profiles.work import ROUNDING
from loramux_runtime.jobs.training_job import TrainingJob


def end_of(training: TrainingJob) -> End | None:
    """How the job has ended, if it has."""
    if training.diverged:
        return End(Event.DIVERGE, training.diverged)
    return End(Event.FINISH, "") if training.finished else None


class TrainingBackend(StepBackend[TrainingJob]):
    """Backend of the loop over real training."""

    meters: Meters

    @abstractmethod
    def peak_bytes(self, device_id: int = 0) -> float | None:
        """Most bytes that the device has held; None where it is not known."""

    def _end_of(self, run: LiveRun[TrainingJob]) -> End | None:
        return end_of(run.training)

    def _stepped(self, device_id: int, tokens: int) -> None:
        """A step has run with so many tokens."""
        self.meters.step(device_id, tokens, -(-tokens // ROUNDING) * ROUNDING)

    def _joined(self, run: LiveRun[TrainingJob]) -> None:
        self._note_memory(run.job.devices[0])

    def _boundary(self) -> bool:
        self.meters.queue(self.now_s, self._loop.cluster.n_waiting)
        return False

    def _account(self, device: StepDevice[TrainingJob]) -> None:
        self.meters.advance(device.fused.device_id, self.now_s, 0.0, IDLE, len(device.fused.runs))

    def _note_memory(self, device_id: int) -> None:
        """The device's residents have changed."""
        residents = len(self.devices[device_id].fused.runs)
        expected = self._loop.cluster.fleet[device_id].expected if residents else 0.0
        self.meters.memory(device_id, self.now_s, self.peak_bytes(device_id) or expected, residents)

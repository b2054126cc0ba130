"""This module tells a run's meters about its devices.

They hear of time with residents, memory, tokens, and jobs that wait.
"""

from __future__ import annotations

from collections.abc import Callable

from loramux_policies.loop.meters import IDLE, Meters
from loramux_policies.stepping.contracts import StepDevice
from loramux_policies.stepping.residents import Residents
from loramux_profiles.work import ROUNDING
from loramux_runtime.jobs.training_job import TrainingJob


def count_step(meters: Meters, device_id: int, tokens: int) -> None:
    """Count one fused step with so many tokens."""
    meters.step(device_id, tokens, -(-tokens // ROUNDING) * ROUNDING)


class Accounts:
    """Keeps the meters of a run of real training."""

    def __init__(
        self, meters: Meters, residents: Residents[TrainingJob], peak_bytes: Callable[[int], float | None]
    ) -> None:
        self._meters, self._residents, self._peak_bytes = meters, residents, peak_bytes

    def residents_change(self, device: StepDevice[TrainingJob]) -> None:
        """Account for the time up to now, before a job joins or leaves the device."""
        self._meters.advance(device.fused.device_id, self._residents.now_s, 0.0, IDLE, len(device.fused.runs))

    def note_memory(self, device_id: int) -> None:
        """Note what the device holds now that its residents have changed.

        It is as measured where that is known, else as expected.
        """
        residents = self._residents
        here = len(residents.devices[device_id].fused.runs)
        expected = residents.cluster.fleet[device_id].expected if here else 0.0
        held = self._peak_bytes(device_id) or expected
        self._meters.memory(device_id, residents.now_s, held, here)

    def note_queue(self) -> None:
        """Note how many jobs wait."""
        self._meters.queue(self._residents.now_s, self._residents.cluster.n_waiting)

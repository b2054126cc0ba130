"""Meters keep the totals of a run per device, and the samples that its charts are drawn from.

They are columns of floats, never objects.
"""

from __future__ import annotations

from array import array
from typing import Any, Final, NamedTuple

from loramux_traces.results import RunStats


class Speed(NamedTuple):
    """A speed is a device's pace with its present residents."""

    rate: float
    """Units of virtual time per second."""
    real_per_unit: float
    """Non-pad tokens per unit."""
    computed_per_unit: float
    steps_per_unit: float


IDLE: Final = Speed(0.0, 0.0, 0.0, 0.0)


class Meters:
    """Meters keep integrals over time for each device."""

    def __init__(self, n_devices: int, *, record: bool = True) -> None:
        self.record = record
        self._since = [0.0] * n_devices
        self._memory = [0.0] * n_devices
        self.busy_s = [0.0] * n_devices
        self.real_tokens = [0.0] * n_devices
        self.computed_tokens = [0.0] * n_devices
        self.steps = [0.0] * n_devices
        self.memory_byte_s = [0.0] * n_devices
        self.memory_peak = [0.0] * n_devices
        self._sample_device = array("l")
        self._sample_t = array("d")
        self._sample_memory = array("d")
        self._sample_residents = array("l")
        self._queue_t = array("d")
        self._queue_n = array("l")
        self._queued = -1
        """The number of waiting jobs in the last sample of the queue."""

    def advance(self, device_id: int, now_s: float, units: float, speed: Speed, residents: int) -> None:
        """Account for the time since the device was last advanced.

        `units` of virtual time have passed in it.
        """
        elapsed = now_s - self._since[device_id]
        if elapsed > 0.0:
            self._since[device_id] = now_s
            if residents:
                self.busy_s[device_id] += elapsed
                self.memory_byte_s[device_id] += elapsed * self._memory[device_id]
        if units > 0.0:
            _, real, computed, steps = speed
            self.real_tokens[device_id] += units * real
            self.computed_tokens[device_id] += units * computed
            self.steps[device_id] += units * steps

    def busy_until(self, device_id: int, now_s: float, residents: int) -> float:
        """Return the seconds with residents, including those since the last change of them."""
        return self.busy_s[device_id] + (max(0.0, now_s - self._since[device_id]) if residents else 0.0)

    def step(self, device_id: int, real_tokens: float, computed_tokens: float) -> None:
        """Account for one fused step on a device."""
        self.real_tokens[device_id] += real_tokens
        self.computed_tokens[device_id] += computed_tokens
        self.steps[device_id] += 1

    def no_work(self, device_id: int, micro_steps: float, real_tokens: float) -> None:
        """Take back micro-steps whose time was not spent on tokens.

        A process of its own was loading while the clock ran.
        """
        self.no_tokens(device_id, micro_steps * real_tokens)
        self.steps[device_id] -= micro_steps

    def no_tokens(self, device_id: int, tokens: float) -> None:
        """Take back tokens that were counted and not computed.

        A gang goes at the pace of its slowest device.
        """
        self.real_tokens[device_id] -= tokens
        self.computed_tokens[device_id] -= tokens

    def no_steps(self, device_id: int, steps: float) -> None:
        """Take back steps that were counted and did not take place.

        The reason is the same: a gang goes at the pace of its slowest device.
        """
        self.steps[device_id] -= steps

    def memory(self, device_id: int, now_s: float, expected_bytes: float, residents: int) -> None:
        """Note how many bytes the device holds from now on."""
        self._memory[device_id] = expected_bytes
        if expected_bytes > self.memory_peak[device_id]:
            self.memory_peak[device_id] = expected_bytes
        if self.record:
            self._sample_device.append(device_id)
            self._sample_t.append(now_s)
            self._sample_memory.append(expected_bytes)
            self._sample_residents.append(residents)

    def queue(self, now_s: float, n_waiting: int) -> None:
        """Note how many jobs wait from now on."""
        if n_waiting != self._queued and self.record:
            self._queued = n_waiting
            self._queue_t.append(now_s)
            self._queue_n.append(n_waiting)

    def begin_window(self) -> None:
        """Set the totals back to zero, so that they count from now on.

        Every device has just been advanced to now.
        """
        for totals in (self.busy_s, self.real_tokens, self.computed_tokens, self.steps, self.memory_byte_s):
            totals[:] = [0.0] * len(totals)
        self.memory_peak[:] = self._memory

    def stats(self, capacities: list[float]) -> RunStats:
        """Return the totals of the run."""
        finite = [c for c in capacities if c != float("inf")]
        return RunStats(
            busy_device_s=sum(self.busy_s),
            n_devices=len(capacities),
            real_tokens=sum(self.real_tokens),
            computed_tokens=sum(self.computed_tokens),
            memory_byte_s=sum(self.memory_byte_s),
            memory_peak_bytes=max(self.memory_peak, default=0.0),
            memory_capacity_bytes=max(finite, default=0.0),
            memory_capacity_byte_s_per_s=sum(finite),
            steps=sum(self.steps),
        )

    def samples(self) -> dict[str, Any]:
        """Return `samples` and `queue` of the timeline."""
        return {
            "samples": {
                "device_id": self._sample_device.tolist(),
                "t_s": self._sample_t.tolist(),
                "memory_bytes": self._sample_memory.tolist(),
                "n_residents": self._sample_residents.tolist(),
            },
            "queue": {"t_s": self._queue_t.tolist(), "n_waiting": self._queue_n.tolist()},
        }

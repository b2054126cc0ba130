"""Keep the progress of all running jobs as arrays.

So a preemptive policy can ask for the worst of 512 residents in a few us: 512 single look-ups took
200 us a decision, the arrays 20 us (64 devices of 8 seats).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from loramux_policies.loop.job import Job
from loramux_simulator.virtual_time import Run, VirtualClock
from loramux_traces.arrays import Floats

EMPTY: Final = -1e300
"""Attained in an empty slot (predicted: twice that), so that both figures are below any real one
and no NaN arises.
"""


class Board:
    """A Board has one slot per running job.

    attained_s = attained at start_tag + (virtual time - start_tag) * speed_s.
    """

    def __init__(self, n_devices: int) -> None:
        # The arrays are doubled as needed. They start short, because every decision works through
        # them.
        size = n_devices
        self._virtual = np.zeros(n_devices)
        self._at_s = np.zeros(n_devices)
        self._rate = np.zeros(n_devices)
        self._device = np.zeros(size, dtype=np.intp)
        self._tag = np.zeros(size)
        self._attained = np.full(size, EMPTY)
        self._speed = np.zeros(size)
        self._predicted = np.full(size, 2 * EMPTY)
        self._least = np.full(size, EMPTY)
        """Least remaining time: 0 in a slot that is taken."""
        self._jobs: list[Job | None] = [None] * size
        self._read_s = -1.0
        """Time of the last answer; below zero where something has changed since."""
        self._answer: tuple[Sequence[Job | None], Floats, Floats]
        self._free = list(range(size - 1, -1, -1))

    def set_clock(self, device_id: int, clock: VirtualClock) -> None:
        """Note that a device's virtual clock got another rate or a stall.

        Advancing the clock changes nothing here, so it needs no call.
        """
        self._read_s = -1.0
        self._virtual[device_id] = clock.virtual
        self._at_s[device_id] = clock.at_s
        self._rate[device_id] = clock.rate

    def add(self, run: Run, device_id: int) -> None:
        """Put a job that started into a free slot."""
        if not self._free:
            self._grow()
        slot = run.slot = self._free.pop()
        self._jobs[slot] = run.job
        self._least[slot] = 0.0
        self._device[slot] = device_id
        self.update(run)

    def update(self, run: Run) -> None:
        """Read the figures of a run that was rebased."""
        slot, job, cost = run.slot, run.job, run.cost
        self._read_s = -1.0
        per_step = cost.solo_step_s * cost.accumulation
        attained = job.attained_s + (run.done_micro * cost.solo_step_s - job.done_steps * per_step)
        left = (job.predicted_steps - run.done_micro / cost.accumulation) * per_step
        self._tag[slot] = run.start_tag
        self._attained[slot] = attained
        self._speed[slot] = run.per_unit * cost.solo_step_s
        self._predicted[slot] = left + attained

    def remove(self, run: Run) -> None:
        """Empty the slot of a job that left."""
        self._read_s = -1.0
        slot = run.slot
        self._jobs[slot] = None
        self._attained[slot] = self._least[slot] = EMPTY
        self._predicted[slot] = 2 * EMPTY
        self._speed[slot] = 0.0
        self._free.append(slot)
        run.slot = -1

    def read(self, now_s: float) -> tuple[Sequence[Job | None], Floats, Floats]:
        """Return jobs, attained and remaining solo seconds at a time.

        The arrays are the board's own and must not be written to.
        """
        if now_s == self._read_s:
            return self._answer
        virtual = now_s - self._at_s
        np.maximum(virtual, 0.0, out=virtual)
        virtual *= self._rate
        virtual += self._virtual
        attained = virtual.take(self._device)
        attained -= self._tag
        attained *= self._speed
        attained += self._attained
        remaining = self._predicted - attained
        np.maximum(remaining, self._least, out=remaining)  # a job may run longer than predicted
        self._read_s, self._answer = now_s, (self._jobs, attained, remaining)
        return self._answer

    def _grow(self) -> None:
        size = len(self._jobs)
        self._device = np.concatenate([self._device, np.zeros(size, dtype=np.intp)])
        self._tag = np.concatenate([self._tag, np.zeros(size)])
        self._speed = np.concatenate([self._speed, np.zeros(size)])
        self._attained = np.concatenate([self._attained, np.full(size, EMPTY)])
        self._predicted = np.concatenate([self._predicted, np.full(size, 2 * EMPTY)])
        self._least = np.concatenate([self._least, np.full(size, EMPTY)])
        self._jobs.extend([None] * size)
        self._free = list(range(2 * size - 1, size - 1, -1))

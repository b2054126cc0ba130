"""This module holds ASPEN's two fixed-window rules: first k by arrival (M1), and MinPad (M3).

MinPad is as released. Source: arXiv 2312.02515 section 4.2 and its released code, which has no
memory check. Here a window that does not fit with its real lengths is cut to what fits.
"""

from __future__ import annotations

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rule_helpers import as_many_as_fit, start_in_order
from loramux_policies.views import ClusterView, DeviceView, FusedStep, Plan, ReadyJob


class _Windowed(Policy):
    """Admits in arrival order by memory and seats, and fuses at most k jobs."""

    def __init__(self, k: int = 4, residents: int = 0, window: int = 1) -> None:
        if k < 1 or residents < 0 or window < 1:
            raise ValueError(f"k and window must be at least 1, residents not negative: {k}, {window}, {residents}")
        self.k = self.max_fused = k
        self.seats = float(residents or 4 * k)
        self.window = window

    def place(self, view: ClusterView) -> Plan:
        """Start the waiting jobs in arrival order."""
        plan = view.plan()
        start_in_order(view, plan, window=self.window)
        return plan

    def fuse(self, device: DeviceView) -> FusedStep:
        """Fuse everybody if they are k at most; otherwise fuse the window."""
        if device.n_residents <= self.k:
            step = device.everyone()
            if step is not None:
                return step
        ready = sorted(device.ready, key=lambda job: (job.submit_s, job.job_id))
        return as_many_as_fit(device, self._window(ready))

    def _window(self, ready: list[ReadyJob]) -> list[ReadyJob]:
        raise NotImplementedError  # each of the two policies below has its own


@register("aspen-fifo")
class AspenFifo(_Windowed):
    """Fuse the first k residents in arrival order in every step: ASPEN's trivial rule (M1).

    `k`: jobs in a step. `residents`: most jobs on a device (0: 4k). `window`: blocked jobs before
    admission gives up.
    """

    def _window(self, ready: list[ReadyJob]) -> list[ReadyJob]:
        return ready[: self.k]


@register("aspen-minpad")
class AspenMinPad(_Windowed):
    """Fuse the k neighbours in length that pad least: ASPEN's optimal-fit rule (M3, MinPad).

    It is as released, and it may starve a job. Candidates are ordered by the longest row of their
    next micro-batch, descending, stable. The rule takes the window of k with the strictly least
    sum(L_max - L_i); ties go to the window with the longest rows. `k`: jobs in a step. `residents`:
    most jobs on a device (0: 4k). `window`: blocked jobs before admission gives up.
    """

    def _window(self, ready: list[ReadyJob]) -> list[ReadyJob]:
        ready.sort(key=lambda job: -job.longest)
        k, lengths = self.k, [job.longest for job in ready]
        starts = range(max(1, len(ready) - k + 1))
        # min keeps the first of equals
        best = min(starts, key=lambda i: k * lengths[i] - sum(lengths[i : i + k]))
        return ready[best : best + k]

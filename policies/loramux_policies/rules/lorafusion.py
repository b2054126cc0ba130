"""This module packs balanced micro-batches in the manner of LoRAFusion.

Source: arXiv 2510.00206 section 5.
"""

from __future__ import annotations

from math import ceil

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rule_helpers import as_many_as_fit, start_in_order
from loramux_policies.views import ClusterView, DeviceView, FusedStep, Plan, ReadyJob


@register("lorafusion")
class LoraFusion(Policy):
    """Pack the residents' micro-batches into token-balanced bins, and run one bin a step.

    A step is the bin of the job that has waited longest. LoRAFusion solves a MILP per batch
    offline; this rule packs greedily (longest first into the emptiest bin), step by step. `k`: most
    jobs in a bin. `residents`: most jobs on a device (0: 4k). `budget_tokens`: what a bin aims to
    hold at most (bins of one job may hold more). `window`: blocked jobs before admission, by
    arrival, gives up.
    """

    def __init__(self, k: int = 4, residents: int = 0, budget_tokens: float = 16384.0, window: int = 1) -> None:
        if k < 1 or residents < 0 or window < 1:
            raise ValueError(f"k and window must be at least 1, residents not negative: {k}, {window}, {residents}")
        if not budget_tokens > 0.0:
            raise ValueError(f"budget_tokens must be above 0, not {budget_tokens}")
        self.k = self.max_fused = k
        self.seats = float(residents or 4 * k)
        self.budget_tokens = budget_tokens
        self.window = window

    def place(self, view: ClusterView) -> Plan:
        """Fill the devices by memory, in arrival order."""
        plan = view.plan()
        start_in_order(view, plan, window=self.window)
        return plan

    def fuse(self, device: DeviceView) -> FusedStep:
        """Fuse everybody if they are k at most; otherwise fuse the bin whose turn has come."""
        if device.n_residents <= self.k:
            step = device.everyone()
            if step is not None:
                return step
        bins = self._bins(device)
        chosen = min(bins, key=lambda jobs: min(_turn(job) for job in jobs))
        return as_many_as_fit(device, sorted(chosen, key=_turn))

    def _bins(self, device: DeviceView) -> list[list[ReadyJob]]:
        def size(job: ReadyJob) -> int:
            return job.rows * job.longest if device.padded else job.tokens

        ready = sorted(device.ready, key=lambda job: (-size(job), job.submit_s, job.job_id))
        total = sum(size(job) for job in ready)
        # take the fewest bins that hold the total at the budget and k jobs each; balanced bins then
        # stay near the budget
        count = min(len(ready), max(ceil(total / self.budget_tokens), ceil(len(ready) / self.k)))
        bins: list[list[ReadyJob]] = [[] for _ in range(count)]
        loads = [0] * count
        for job in ready:
            open_bins = [i for i in range(count) if len(bins[i]) < self.k]
            i = min(open_bins, key=lambda i: (loads[i], i))
            bins[i].append(job)
            loads[i] += size(job)
        return bins


def _turn(job: ReadyJob) -> tuple[int, int, float, str]:
    return (-job.waited, -job.priority, job.submit_s, job.job_id)

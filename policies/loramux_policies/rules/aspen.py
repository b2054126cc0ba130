"""ASPEN (arXiv 2312.02515; mLoRA, VLDB 2025): fuse several jobs' micro-batches on one frozen base, chosen step by step.

The authors' released code holds only a fixed window (FIFO, and once MinPad); the adaptive rule is
this project's, after the paper.
"""

from __future__ import annotations

from typing import ClassVar

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rules._aspen_step import adaptive_step
from loramux_policies.rules._preempt import Worse, preempt_in_order
from loramux_policies.views import ClusterView, DeviceView, FusedStep, JobView, Order, Plan


@register("aspen-priority")
class AspenPriority(Policy):
    """ASPEN as in mLoRA (VLDB 2025): preemptive static priority, as many jobs as memory admits, all fused.

    First come, first served within a class. `window`: how many waiting jobs may be blocked before
    the rule gives up.
    """

    order = Order(key=lambda job: (-job.priority,))
    preempts: ClassVar[bool] = True

    def __init__(self, window: int = 16) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.window = window

    def place(self, view: ClusterView) -> Plan:
        """Admit by class and arrival, in the stead of strictly lower classes where memory is short."""
        plan = view.plan()

        def lower(job: JobView) -> Worse:
            return Worse(view.residents_after(job), lambda resident: -resident.priority, -job.priority)

        preempt_in_order(view, plan, lower, window=self.window)
        return plan


@register("aspen")
class Aspen(AspenPriority):
    """ASPEN, adaptive: a step fuses up to k residents, starved first, then by class, with the least padding.

    `k`: most jobs in one fused step. `residents`: most jobs on a device (0: k). With the default
    everybody on a device is in every step, as under `aspen-priority`: there is something to choose
    from only where residents exceed k, which costs rate fidelity a roll-out for every change of a
    device's residents (20 times slower where memory holds many). `candidates`: percent of the order
    that a step's classes choose from (the authors' top-k). `budget_tokens`: what packed steps aim
    at (0: k times the mean micro-batch). `window`: how many waiting jobs may be blocked before
    admission gives up.
    """

    def __init__(
        self, k: int = 8, residents: int = 0, candidates: float = 100.0, budget_tokens: float = 0.0, window: int = 16
    ) -> None:
        super().__init__(window)
        if k < 1 or residents < 0:
            raise ValueError(f"k must be at least 1 and residents not negative, not {k} and {residents}")
        if not 0.0 < candidates <= 100.0:
            raise ValueError(f"candidates must be a percentage above 0, up to 100, not {candidates}")
        if not budget_tokens >= 0.0:
            raise ValueError(f"budget_tokens must not be negative, not {budget_tokens}")
        self.k = self.max_fused = k
        self.seats = float(residents or k)
        self.candidates = candidates
        self.budget_tokens = budget_tokens

    def fuse(self, device: DeviceView) -> FusedStep:
        """Everybody where k and memory allow it; else the choice of `_aspen_step`."""
        if device.n_residents <= self.k:
            step = device.everyone()
            if step is not None:
                return step
        return adaptive_step(device, self.k, self.candidates, self.budget_tokens)

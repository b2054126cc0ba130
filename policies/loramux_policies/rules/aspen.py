"""This module holds ASPEN, which fuses several jobs' micro-batches on one frozen base.

The jobs are chosen step by step. Sources: arXiv 2312.02515; mLoRA, VLDB 2025. The authors' released
code holds only a fixed window (FIFO, and once MinPad); the adaptive rule is this project's, after
the paper.
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
    """Fuse all jobs that memory admits, by preemptive static priority (ASPEN in mLoRA, VLDB 2025).

    Within a class the order is first come, first served. `window`: how many waiting jobs may be
    blocked before the rule gives up.
    """

    order = Order(key=lambda job: (-job.priority,))
    preempts: ClassVar[bool] = True

    def __init__(self, window: int = 16) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.window = window

    def place(self, view: ClusterView) -> Plan:
        """Admit by class and arrival; where memory is short, displace strictly lower classes."""
        plan = view.plan()

        def lower(job: JobView) -> Worse:
            return Worse(view.residents_after(job), lambda resident: -resident.priority, -job.priority)

        preempt_in_order(view, plan, lower, window=self.window)
        return plan


@register("aspen")
class Aspen(AspenPriority):
    """Fuse up to k residents a step: starved ones first, then by class, with the least padding.

    This is the adaptive rule of ASPEN. `k`: most jobs in one fused step. `residents`: most jobs on
    a device (0: k). With the default, everybody on a device is in every step, as under
    `aspen-priority`. There is something to choose from only where residents exceed k, which costs
    rate fidelity a roll-out for every change of a device's residents (20 times slower where memory
    holds many). `candidates`: percent of the order that a step's classes choose from (the authors'
    top-k). `budget_tokens`: the tokens that packed steps aim at (0: k times the mean micro-batch).
    `window`: how many waiting jobs may be blocked before admission gives up.
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
        """Fuse everybody where k and memory allow it; otherwise let `_aspen_step` choose."""
        if device.n_residents <= self.k:
            step = device.everyone()
            if step is not None:
                return step
        return adaptive_step(device, self.k, self.candidates, self.budget_tokens)

"""This module holds the baselines without a shared base: one job or k processes per device."""

from __future__ import annotations

from typing import ClassVar, Literal

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rule_helpers import start_in_order
from loramux_policies.views import ClusterView, Plan


@register("separate")
class Separate(Policy):
    """Run up to k separate processes per device, by arrival, each with a base copy of its own.

    The order is first come, first served, and nobody passes a blocked head. This is what people do
    without fused training; the device's measured multi-process curve says how fast k of them run.
    `k`: most processes per device (memory may allow fewer).
    """

    copies: ClassVar[Literal["shared", "separate"]] = "separate"

    def __init__(self, k: int = 4) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        self.seats = float(k)

    def place(self, view: ClusterView) -> Plan:
        """Start jobs from the head of the queue; the loop enforces the k seats."""
        plan = view.plan()
        start_in_order(view, plan)
        return plan


@register("exclusive")
class Exclusive(Separate):
    """Run one job per device with its own base copy, first come, first served.

    This is the baseline that every claim needs.
    """

    def __init__(self) -> None:
        super().__init__(k=1)

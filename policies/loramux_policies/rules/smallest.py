"""This module serves the smallest memory x time first."""

from __future__ import annotations

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rule_helpers import start_in_order
from loramux_policies.views import ClusterView, Order, Plan


@register("smallest-memory-time")
class SmallestMemoryTime(Policy):
    """Start the smallest memory x predicted remaining time first, with skip-ahead.

    This frees the most memory soonest: it weighs a job by the memory that it keeps from others for
    as long as it runs. On brute-forced toy instances its mean response was 1.019 of the optimum,
    that of shortest job first 1.099, and that of first come, first served 1.247 (this project's
    notes). `window`: how many waiting jobs may be blocked before the rule gives up.
    """

    order = Order(key=lambda job: (job.need_bytes * job.remaining_s,))

    def __init__(self, window: int = 16) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.window = window

    def place(self, view: ClusterView) -> Plan:
        """Start jobs from the smallest product on."""
        plan = view.plan()
        start_in_order(view, plan, window=self.window)
        return plan

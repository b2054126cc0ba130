"""This module packs jobs by memory, each on the device that fits it best."""

from __future__ import annotations

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rule_helpers import start_in_order
from loramux_policies.views import ClusterView, Plan


@register("best-fit")
class BestFit(Policy):
    """Start jobs by arrival, each on the device with the least free memory that still holds it.

    The order is first come, first served with skip-ahead. The rule packs tightly and keeps whole
    devices free for large jobs, at the price of more co-runners per device than `fifo`. `window`:
    how many blocked jobs are passed over before the rule gives up.
    """

    def __init__(self, window: int = 16) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.window = window

    def place(self, view: ClusterView) -> Plan:
        """Start jobs in order, each on the device that fits it best."""
        plan = view.plan()
        start_in_order(view, plan, window=self.window, rule="best-fit")
        return plan

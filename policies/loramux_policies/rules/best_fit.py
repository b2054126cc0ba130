"""Best-fit packing by memory."""

from __future__ import annotations

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rule_helpers import start_in_order
from loramux_policies.views import ClusterView, Plan


@register("best-fit")
class BestFit(Policy):
    """First come, first served with skip-ahead, each job on the device with the least free memory that still holds it.

    Packs tightly and keeps whole devices free for large jobs, at the price of more co-runners per
    device than `fifo`. `window`: how many blocked jobs are passed over before the rule gives up.
    """

    def __init__(self, window: int = 16) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.window = window

    def place(self, view: ClusterView) -> Plan:
        """Start in order, best fit first."""
        plan = view.plan()
        start_in_order(view, plan, window=self.window, rule="best-fit")
        return plan

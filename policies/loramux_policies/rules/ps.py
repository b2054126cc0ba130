"""Processor sharing."""

from __future__ import annotations

from loramux_policies.packing import start_in_order
from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.views import ClusterView, Plan


@register("ps")
class ProcessorSharing(Policy):
    """Equal shares: every job that fits runs at once; what does not waits in arrival order, and may be passed.

    The queue is searched to its end, so a small job passes any number of large ones.
    """

    def place(self, view: ClusterView) -> Plan:
        """Start everything that fits."""
        plan = view.plan()
        start_in_order(view, plan, window=float("inf"))
        return plan

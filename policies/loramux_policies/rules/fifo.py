"""This module holds the rules that serve first come, first served."""

from __future__ import annotations

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rule_helpers import start_in_order
from loramux_policies.views import ClusterView, Plan


@register("fifo")
class Fifo(Policy):
    """Start the oldest job on the least loaded device; nobody passes a blocked head.

    The order is first come, first served. `window`: how many waiting jobs may be blocked before the
    rule gives up; 1 is the strict head, and more lets jobs skip ahead.
    """

    def __init__(self, window: int = 1) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.window = window

    def place(self, view: ClusterView) -> Plan:
        """Start jobs from the head of the queue."""
        plan = view.plan()
        start_in_order(view, plan, window=self.window)
        return plan


@register("fifo-skip")
class FifoSkip(Fifo):
    """Serve first come, first served, but let jobs that fit pass others that do not.

    A job may pass up to `window - 1` jobs that do not fit (default window 16).
    """

    def __init__(self, window: int = 16) -> None:
        super().__init__(window)

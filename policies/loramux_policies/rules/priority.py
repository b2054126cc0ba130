"""This module holds static priorities, preemptive and with ageing."""

from __future__ import annotations

from math import inf
from typing import ClassVar

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rules._preempt import Worse, preempt_in_order
from loramux_policies.views import ClusterView, JobView, Order, Plan


@register("priority")
class Priority(Policy):
    """Run the highest priority first, preempting strictly lower classes.

    Within a class the order is first come, first served. `ageing_per_s`: priority classes gained
    per second of waiting; 0 is strictly static. Waiting lifts a job past later arrivals of a higher
    class; since everybody ages at one rate, the order never changes while jobs wait and the key
    stays fixed. `window`: how many waiting jobs may be blocked before the rule gives up.
    """

    preempts: ClassVar[bool] = True

    def __init__(self, ageing_per_s: float = 0.0, window: int = 1) -> None:
        if not ageing_per_s >= 0.0:
            raise ValueError(f"ageing_per_s must not be negative, not {ageing_per_s}")
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.ageing_per_s = ageing_per_s
        self.window = window
        self.order = Order(key=lambda job: (self.rank(job),))

    def rank(self, job: JobView) -> float:
        """Return the rank of a job; the smallest rank goes first.

        It is minus the priority, plus what a later start of waiting costs in classes.
        """
        return -job.priority + self.ageing_per_s * job.enqueued_s

    def place(self, view: ClusterView) -> Plan:
        """Start jobs from the highest rank on; they displace residents of lower classes."""
        plan = view.plan()

        def lower(job: JobView) -> Worse:
            # ageing orders the queue; it never makes a job displace an equal or a better class
            def badness(resident: JobView) -> float:
                return self.rank(resident) if resident.priority < job.priority else -inf

            mine = self.rank(job)
            behind = (resident for resident in view.residents_after(job) if badness(resident) > mine)
            return Worse(behind, badness, mine)

        preempt_in_order(view, plan, lower, window=self.window, nested=self.ageing_per_s == 0.0)
        return plan

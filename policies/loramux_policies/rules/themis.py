"""This module holds the finish-time fairness of Themis.

Source: Mahajan et al., NSDI 2020.
"""

from __future__ import annotations

from typing import ClassVar

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rule_helpers import start_in_order
from loramux_policies.rules._rounds import contenders, deal, next_round_s, start_of_round
from loramux_policies.views import ClusterView, JobView, Order, Plan

LIKELY_RHO = 4.0
"""Value of rho that says which `cap` waiting jobs compete in a round.

They are those whose rho reaches this value first, which is a fixed point in time.
"""


@register("finish-time-fairness")
class FinishTimeFairness(Policy):
    """Give the devices to the jobs with the worst finish-time fairness at each lease's end.

    This is the rule of Themis. rho = (time since submission + predicted remaining time) / predicted
    time alone. Themis divides by the time in a 1/n share of the cluster; n is the same for all jobs
    of a moment, so the order is the same too. Residents keep their devices while a lease lasts.
    `lease_s`: seconds of a lease. `cap`: waiting jobs that compete.
    """

    preempts: ClassVar[bool] = True
    order = Order(key=lambda job: (job.submit_s + LIKELY_RHO * job.solo_s - job.remaining_s,))

    def __init__(self, lease_s: float = 1200.0, cap: int = 256) -> None:
        if not 0.0 < lease_s < float("inf") or cap < 1:
            raise ValueError(f"lease_s must be above 0 and cap at least 1, not {lease_s} and {cap}")
        self.lease_s = lease_s
        self.cap = cap

    def place(self, view: ClusterView) -> Plan:
        """Deal the devices anew at a lease's end; in between, start what fits."""
        if start_of_round(view.now_s, self.lease_s) and view.n_waiting:
            residents, waiting = contenders(view, self.cap)
            now_s = view.now_s

            def unfair(item: tuple[JobView, bool]) -> tuple[float, bool, float, str]:
                job, is_waiting = item
                rho = (now_s - job.submit_s + job.remaining_s) / job.solo_s
                return (-rho, is_waiting, job.submit_s, job.job_id)

            ranked = sorted([(j, False) for j in residents] + [(j, True) for j in waiting], key=unfair)
            plan = deal(view, [job for job, _ in ranked])
        else:
            plan = view.plan()
            start_in_order(view, plan)
        if view.n_waiting:
            plan.review_at(next_round_s(view.now_s, self.lease_s))
        return plan

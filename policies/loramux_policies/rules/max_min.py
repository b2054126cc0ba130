"""Max-min fairness by linear program (Gavel: Narayanan et al., OSDI 2020, sections 4.1 and 5)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from loramux_policies.packing import start_in_order
from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rules._highs import linear_program
from loramux_policies.rules._rounds import contenders, deal, next_round_s, start_of_round
from loramux_policies.views import ClusterView, JobView, Order, Plan

LEFTOVER = 1e-3
"""Weight of the total beside the minimum: what the worst-off cannot use goes to the others."""


@register("max-min")
class MaxMin(Policy):
    """Gavel's max-min fairness: a linear program gives each job a share of the time, rounds make it come true.

    Each round starts the jobs with the largest ratio of the share the program gives them to the share they have had.
    `by`: `job`, or `user` (users get equal totals). `round_s`: seconds of a round (Gavel: 360). `cap`: waiting jobs
    in the program, those with the least service first.
    """

    preempts: ClassVar[bool] = True
    order = Order(key=lambda job: (job.attained_s,))

    def __init__(self, by: str = "job", round_s: float = 360.0, cap: int = 128) -> None:
        if by not in ("job", "user"):
            raise ValueError(f"by must be job or user, not {by!r}")
        if not 0.0 < round_s < float("inf") or cap < 1:
            raise ValueError(f"round_s must be above 0 and cap at least 1, not {round_s} and {cap}")
        self.by = by
        self.round_s = round_s
        self.cap = cap

    def place(self, view: ClusterView) -> Plan:
        """At a round's start deal the devices anew; in between start what fits."""
        if start_of_round(view.now_s, self.round_s) and view.n_waiting:
            residents, waiting = contenders(view, self.cap)
            jobs = residents + waiting
            shares = self.shares(view, jobs)
            ranks = []
            for position, (job, share) in enumerate(zip(jobs, shares, strict=True)):
                had = job.attained_s / max(view.now_s - job.submit_s, 1e-9)
                # equal ratios go to whoever is running: a pause gains nothing
                ranks.append((-share / max(had, 1e-9), position >= len(residents), job.submit_s, job.job_id, position))
            plan = deal(view, [jobs[rank[-1]] for rank in sorted(ranks)])
        else:
            plan = view.plan()
            start_in_order(view, plan)
        if view.n_waiting:
            plan.review_at(next_round_s(view.now_s, self.round_s))
        return plan

    def shares(self, view: ClusterView, jobs: list[JobView]) -> list[float]:
        """Share of the time for each job: max min over jobs or users, within the cluster's memory and seats.

        Devices count as one pool (residents share a base, so a job's speed hardly depends on which device it is on).
        """
        n = len(jobs)
        owners = [job.user if self.by == "user" else job.job_id for job in jobs]
        row_of = {owner: row for row, owner in enumerate(dict.fromkeys(owners))}
        least = np.zeros((len(row_of), n + 1))  # z - sum of the owner's shares <= 0
        least[:, n] = 1.0
        for column, owner in enumerate(owners):
            least[row_of[owner], column] = -1.0
        capacity = sum(view.capacity_bytes(device) for device in range(view.n_devices))
        rows, bounds = [least], [0.0] * len(row_of)
        if capacity < float("inf"):
            rows.append(np.array([[job.need_bytes * job.num_gpus / capacity for job in jobs] + [0.0]]))
            bounds.append(1.0)
        if view.max_resident < float("inf"):
            rows.append(np.array([[float(job.num_gpus) for job in jobs] + [0.0]]))
            bounds.append(view.max_resident * view.n_devices)
        cost = np.full(n + 1, -LEFTOVER / n)
        cost[n] = -1.0
        solution = linear_program(cost, np.vstack(rows), np.array(bounds))
        return [1.0] * n if solution is None else [float(share) for share in solution[:n]]

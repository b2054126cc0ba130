"""This module holds the max-min fairness of Gavel.

Source: Narayanan et al., OSDI 2020, sections 4.1 and 5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rule_helpers import start_in_order
from loramux_policies.rules._rounds import contenders, deal, next_round_s, start_of_round
from loramux_policies.views import ClusterView, JobView, Order, Plan


@register("max-min")
class MaxMin(Policy):
    """Give each job its max-min fair share of the time, round by round (Gavel).

    A program gives the shares, and rounds make them come true. Each round starts the jobs with the
    largest ratio of the share that the program gives them to the share that they have had. `by`:
    `job`, or `user` (users get equal totals, split equally between a user's jobs). `round_s`:
    seconds of a round (Gavel: 360). `cap`: waiting jobs in the program, those with the least
    service first.
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
        """Deal the devices anew at a round's start; in between, start what fits."""
        if start_of_round(view.now_s, self.round_s) and view.n_waiting:
            residents, waiting = contenders(view, self.cap)
            jobs = residents + waiting
            shares = self.shares(view, jobs)
            ranks = []
            for position, (job, share) in enumerate(zip(jobs, shares, strict=True)):
                had = job.attained_s / max(view.now_s - job.submit_s, 1e-9)
                # on equal ratios the running job goes first: a pause would gain nothing
                ranks.append((-share / max(had, 1e-9), position >= len(residents), job.submit_s, job.job_id, position))
            plan = deal(view, [jobs[rank[-1]] for rank in sorted(ranks)])
        else:
            plan = view.plan()
            start_in_order(view, plan)
        if view.n_waiting:
            plan.review_at(next_round_s(view.now_s, self.round_s))
        return plan

    def shares(self, view: ClusterView, jobs: list[JobView]) -> list[float]:
        """Return each job's share of the time: max min over jobs or users.

        The shares stay within the cluster's memory and seats. Devices count as one pool (residents
        share a base, so a job's speed hardly depends on which device it is on). Every owner's total
        rises with the same water level, in equal parts for each of the owner's jobs, until all of
        them run all the time or memory or seats are full. This is the program's lexicographic
        optimum. It favours no job, unlike a vertex of the program, which gives a user's part to one
        job of many.
        """
        counts = Counter(self._owner(job) for job in jobs)
        of_owner = [counts[self._owner(job)] for job in jobs]
        capacity = sum(view.capacity_bytes(device) for device in range(view.n_devices))
        needs = [(job.need_bytes * job.num_gpus, float(job.num_gpus)) for job in jobs]
        rooms = (capacity, view.max_resident * view.n_devices)
        level = min(_level([need[i] for need in needs], of_owner, room) for i, room in enumerate(rooms))
        return [min(1.0, level / count) for count in of_owner]

    def _owner(self, job: JobView) -> str:
        return job.user if self.by == "user" else job.job_id


def _level(needs: Sequence[float], of_owner: Sequence[int], room: float) -> float:
    """Return the highest level at which the jobs need no more room than there is.

    At a level a job gets min(1, level / jobs of its owner).
    """
    filled, slope, at = 0.0, sum(need / count for need, count in zip(needs, of_owner, strict=True)), 0.0
    for need, count in sorted(zip(needs, of_owner, strict=True), key=lambda item: item[1]):
        if filled + slope * (count - at) >= room:
            break
        filled += slope * (count - at)
        at = float(count)  # jobs of owners with so many run all the time from here on
        slope -= need / count
    else:
        return at
    return at + (room - filled) / slope

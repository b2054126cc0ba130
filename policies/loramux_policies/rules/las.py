"""Least attained service, for when sizes are unknown (foreground-background; Nuyens and Wierman 2008)."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from math import inf
from typing import ClassVar, Final

from loramux_policies.errors import PlanError
from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rules._preempt import preempt_in_order
from loramux_policies.views import ClusterView, JobView, Order, Plan

SWITCHES_PER_QUANTUM: Final = 50
"""A quantum of 50 switches keeps the time lost to switching at 2%."""
LEAST_QUANTUM_S: Final = 60.0
"""Where switching costs anything at all: no scheduler of training jobs slices finer than a minute."""
SLICES_PER_JOB: Final = 16
"""Where switching is free but tied jobs cannot share a seat, the quantum is the job's predicted size over this."""


def _level(job: JobView) -> tuple[float, float, str]:
    return (job.attained_s, job.submit_s, job.job_id)


def _tolerance(level_s: float, now_s: float) -> float:
    """Levels closer than this are one: rounding of the levels themselves and of the clock they are computed from."""
    return 1e-9 * level_s + 1e-14 * now_s


@register("las")
class LeastAttainedService(Policy):
    """Least attained service first, preemptive; needs no predicted sizes.

    A waiting job with `a` seconds of service displaces a resident once that has a + max(quantum, growth * a).
    `quantum_s`: default 50 x the cost of one pause and resume, at least 60 s. `growth`: makes later slices longer, so
    that a job of n quanta is paused about log n times, not n times; 0 gives slices of one length. With free switching
    (--ideal) on one device with --max-resident, no quantum is needed: the jobs of the least level run, tied jobs
    share a seat equally, and the rule is exact foreground-background. Elsewhere, with free switching, the quantum is
    1/16 of the waiting job's predicted size.
    """

    order = Order(key=lambda job: (job.attained_s,))
    preempts: ClassVar[bool] = True
    slices: ClassVar[bool] = True

    def __init__(self, quantum_s: float | None = None, growth: float = 1.0) -> None:
        if quantum_s is not None and not 0.0 < quantum_s < inf:
            raise ValueError(f"quantum_s must be above 0, not {quantum_s}")
        if not 0.0 <= growth < inf:
            raise ValueError(f"growth must not be negative, not {growth}")
        self.quantum_s = quantum_s
        self.growth = growth

    def place(self, view: ClusterView) -> Plan:
        """Run the least attained, exactly where that is possible."""
        if self.quantum_s is not None or view.n_devices > 1 or view.max_resident == inf:
            return self._sliced(view)
        residents = view.residents(0)
        first = next(iter(residents or view.waiting(view.n_waiting)), None)
        if first is not None and view.switch_s(first.job_id) > 0.0:
            return self._sliced(view)
        residents = sorted(residents, key=_level)
        left_out: dict[str, JobView] = {}
        while True:
            plan = view.plan()
            failed = self._share(view, plan, residents, left_out)
            if not failed:
                return plan
            left_out.update(failed)

    # -- with a quantum

    def _limit_s(self, view: ClusterView, job: JobView) -> float:
        """Service at which a resident makes way for this waiting job."""
        quantum_s = self.quantum_s
        if quantum_s is None:
            switch_s = view.switch_s(job.job_id)
            quantum_s = max(SWITCHES_PER_QUANTUM * switch_s, LEAST_QUANTUM_S) if switch_s > 0.0 else 0.0
            quantum_s = quantum_s or job.solo_s / SLICES_PER_JOB
        return job.attained_s + max(quantum_s, self.growth * job.attained_s)

    def _sliced(self, view: ClusterView) -> Plan:
        plan = view.plan()

        def richer(job: JobView) -> Iterator[JobView]:
            # a little below the limit, so that a review at the limit finds its resident above it whatever the rounding
            return iter(view.preemptible("attained_s", above=job.attained_s + 0.999 * (limit(job) - job.attained_s)))

        def limit(job: JobView) -> float:
            return self._limit_s(view, job)

        blocked = preempt_in_order(view, plan, richer, nested=False)
        if blocked is not None:
            self._review(view, plan, blocked.attained_s, limit(blocked))
        return plan

    @staticmethod
    def _review(view: ClusterView, plan: Plan, level_s: float, limit_s: float) -> None:
        """Come back when the resident nearest below the limit reaches it (who gets there before is seen then)."""
        for resident in view.preemptible("attained_s", above=-1.0):
            device = view.device_of(resident.job_id)
            if device is None or resident.job_id not in plan.residents(device):
                continue
            if resident.attained_s <= level_s + 0.999 * (limit_s - level_s):
                plan.review_when(resident.job_id, limit_s)
            return  # one above the limit that memory does not let go: the next event tries again

    # -- exact, on one device

    def _share(
        self, view: ClusterView, plan: Plan, residents: list[JobView], left_out: dict[str, JobView]
    ) -> dict[str, JobView]:
        """Give seats to groups of equal level, lowest first; the group they do not suffice for shares what is left.

        Returns the jobs that memory kept from starting; the seats are then dealt again without them.
        """
        seats, above_s = view.max_resident, inf
        groups: list[list[JobView]] = []
        for job in merge(residents, view.waiting(view.n_waiting), key=_level):
            if job.job_id in left_out:
                continue
            level_s = groups[-1][0].attained_s if groups else -inf
            if groups and job.attained_s <= level_s + _tolerance(level_s, view.now_s):
                groups[-1].append(job)
                continue
            if groups:
                seats -= len(groups[-1])
            if seats <= 0:
                above_s = job.attained_s
                break
            groups.append([job])
        else:
            seats -= len(groups[-1]) if groups else 0
        target: dict[str, tuple[JobView, float]] = {}
        for group in groups:
            share = 1.0 if group is not groups[-1] or seats >= 0 else (seats + len(group)) / len(group)
            target.update((job.job_id, (job, share)) for job in group)
        failed = self._deal(plan, residents, target)
        if not failed:
            self._watch(plan, groups, target, above_s)
            for job in left_out.values():  # who does not fit beside its equals gets its turn when they are ahead
                first = next(iter(target), None)
                if first is not None:
                    plan.review_when(first, target[first][0].attained_s + job.solo_s / SLICES_PER_JOB)
        return failed

    @staticmethod
    def _deal(plan: Plan, residents: list[JobView], target: dict[str, tuple[JobView, float]]) -> dict[str, JobView]:
        for job in residents:
            if job.job_id not in target:
                plan.pause(job.job_id)
        pending = target
        for _ in range(2):  # a seat is free for one that gains only after others have given theirs up
            refused: dict[str, tuple[JobView, float]] = {}
            for job_id, (job, share) in pending.items():
                try:
                    plan.start(job_id, 0, share)
                except PlanError:
                    refused[job_id] = (job, share)
            pending = refused
        return {job_id: job for job_id, (job, _) in pending.items()}

    @staticmethod
    def _watch(
        plan: Plan, groups: list[list[JobView]], target: dict[str, tuple[JobView, float]], above_s: float
    ) -> None:
        """Come back when a running group has caught up with the one above it."""
        if not groups:
            return
        top = groups[-1][0]
        share = target[top.job_id][1]
        if above_s < inf:
            plan.review_when(top.job_id, above_s)
        if share < 1.0 and len(groups) > 1:  # both move, the lower one faster
            below = groups[-2][0]
            plan.review_when(below.job_id, below.attained_s + (top.attained_s - below.attained_s) / (1.0 - share))

"""This module plans exact foreground-background on one device with free switching.

The jobs with the least attained level run, and tied jobs share. The jobs are groups of equal level.
Seats go to groups from the lowest level up; the jobs of the first group for which the seats do not
suffice share what is left, equally. The next decision is due when a running group has caught up
with the one above it.
"""

from __future__ import annotations

from heapq import merge
from math import inf
from typing import Final

from loramux_policies.errors import PlanError
from loramux_policies.views import ClusterView, JobView, Plan

SLICES_PER_JOB: Final = 16
"""Number of quanta per job: the quantum is the job's predicted size divided by this.

It is used where switching is free but tied jobs cannot share a seat.
"""

Target = dict[str, tuple[JobView, float]]
"""Maps a job's id to the job and its share of a seat, lowest level first."""


def shared_seats(view: ClusterView) -> Plan:
    """Return the plan of exact least attained service on device 0."""
    residents = sorted(view.residents(0), key=_level)
    left_out: dict[str, JobView] = {}
    while True:
        plan = view.plan()
        groups, target, above_s = _allot(view, residents, left_out)
        failed = _deal(plan, residents, target)
        if not failed:
            break
        left_out.update(failed)  # memory cannot hold them beside their equals: deal again
    _watch(plan, groups, target, above_s)
    first = next(iter(target), None)
    if left_out and first is not None:  # those left out follow when it is a slice ahead of them
        slice_s = min(job.solo_s for job in left_out.values()) / SLICES_PER_JOB
        plan.review_when(first, target[first][0].attained_s + slice_s)
    return plan


def _level(job: JobView) -> tuple[float, float, str]:
    return (job.attained_s, job.submit_s, job.job_id)


def _tolerance(level_s: float, now_s: float) -> float:
    """Return the distance below which two levels count as one.

    It covers the rounding of the levels themselves and of the clock that they are computed from.
    """
    return 1e-9 * level_s + 1e-14 * now_s


def _allot(
    view: ClusterView, residents: list[JobView], left_out: dict[str, JobView]
) -> tuple[list[list[JobView]], Target, float]:
    """Return the groups that run, their jobs' shares, and the lowest level that does not run.

    That level is infinite where all groups run.
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
    target: Target = {}
    for group in groups:
        share = 1.0 if group is not groups[-1] or seats >= 0 else (seats + len(group)) / len(group)
        target.update((job.job_id, (job, share)) for job in group)
    return groups, target, above_s


def _deal(plan: Plan, residents: list[JobView], target: Target) -> dict[str, JobView]:
    """Pause jobs, start jobs and change shares; return the jobs that memory keeps from starting."""
    for job in residents:
        if job.job_id not in target:
            plan.pause(job.job_id)
    pending = target
    for _ in range(2):  # a job that gains finds its seat free only after others gave theirs up
        refused: Target = {}
        for job_id, (job, share) in pending.items():
            try:
                plan.start(job_id, 0, share)
            except PlanError:
                refused[job_id] = (job, share)
        pending = refused
    return {job_id: job for job_id, (job, _) in pending.items()}


def _watch(plan: Plan, groups: list[list[JobView]], target: Target, above_s: float) -> None:
    """Ask for a review when a running group has caught up with the one above it."""
    if not groups:
        return
    top = groups[-1][0]
    share = target[top.job_id][1]
    if above_s < inf:
        plan.review_when(top.job_id, above_s)
    if share < 1.0 and len(groups) > 1:  # both groups rise, the lower one faster
        below = groups[-2][0]
        plan.review_when(below.job_id, below.attained_s + (top.attained_s - below.attained_s) / (1.0 - share))

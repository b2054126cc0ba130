"""This module holds the preemption that several rules share.

It starts what fits, in order; a job that does not fit takes the place of a worse one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from loramux_policies.views import ClusterView, JobView, Plan

DEVICES_TRIED: Final = 1
"""Devices tried per search for room: only that of the worst resident.

A search costs most of a decision, and trying more devices gained nothing in mean turnaround (64
devices, load 2.5: srtf 26,827 s with one, 26,845 s with four, at 0.7 of the speed).
"""


ABOVE_SKIPPED: Final = 3
"""Residents past their level that are looked over in search of the next to reach it."""


class Worse(NamedTuple):
    """Says whom a waiting job may displace: residents whose badness is strictly above a limit."""

    residents: Iterable[JobView]
    """At least all of them, the worst first; others may follow."""
    badness: Callable[[JobView], float]
    above: float


class Outcome(NamedTuple):
    """Says what came of a walk through the queue."""

    blocked: JobView | None
    """The first job that could not start; None if all could."""
    started: list[JobView]


def preempt_in_order(
    view: ClusterView, plan: Plan, worse: Callable[[JobView], Worse], *, window: float = 1, nested: bool = True
) -> Outcome:
    """Start waiting jobs in their order, and pause worse residents where there is no room.

    `nested` says that the residents whom a job may displace may also be displaced by the jobs
    before it in the queue. Once a job then has nobody to displace, the jobs behind it are only
    tried for free room. They are also only tried for free room after a search that found no room
    among the worse residents. At most `window - 1` jobs that could not start are passed over.
    """
    first: JobView | None = None
    started: list[JobView] = []
    blocked = 0
    spent = False
    start_first = plan.start_first
    for job in view.waiting(view.n_waiting):
        if start_first(job.job_id, "least-loaded") is not None:
            started.append(job)
            continue
        if not spent and job.num_gpus == 1:
            found = _displace(view, plan, job, worse(job))
            if found:
                started.append(job)
                continue
            spent = nested or found is False
        first = first or job
        blocked += 1
        if blocked >= window:
            break
    return Outcome(first, started)


def review_at_level(view: ClusterView, plan: Plan, started: list[JobView], level_s: float, slack: float) -> None:
    """Ask for a review when the nearest resident below this much service reaches it.

    A resident that gets there earlier is seen at that review. Residents above `level_s * slack`
    have reached the level already.
    """
    below = [job for job in started if job.num_gpus == 1 and job.attained_s <= level_s * slack]
    nearest = max(below, key=lambda job: (job.attained_s, job.submit_s, job.job_id), default=None)
    for passed, resident in enumerate(view.preemptible("attained_s", above=-1.0)):
        device = view.device_of(resident.job_id)
        if resident.attained_s <= level_s * slack and device is not None:
            if resident.job_id in plan.residents(device):
                if nearest is None or resident.attained_s > nearest.attained_s:
                    nearest = resident
                break
        elif passed >= ABOVE_SKIPPED:  # memory lets none of these go: the next event tries again
            break
    if nearest is not None:
        plan.review_when(nearest.job_id, level_s)


def _displace(view: ClusterView, plan: Plan, job: JobView, worse: Worse) -> bool | None:
    """Start the job on the device where pausing the fewest of the worst residents makes room.

    Returns None where nobody is worse, and False where there is no room even so. Gangs keep their
    devices, and nobody is paused in vain.
    """
    badness, above = worse.badness, worse.above
    tried = 0
    seen: set[int] = set()
    for victim in worse.residents:
        if badness(victim) <= above or tried == DEVICES_TRIED:
            break
        device = view.device_of(victim.job_id)
        if device is None or device in seen or victim.num_gpus > 1:
            continue
        present = plan.residents(device)
        if victim.job_id not in present:  # it was paused before, for another job
            continue
        seen.add(device)
        if view.capacity_bytes(device) < job.need_bytes:  # the device is too small even when empty
            continue
        tried += 1
        drop = [victim.job_id]
        if not plan.fits(device, (job.job_id,), drop):
            others = [
                (badness(other), other.submit_s, other.job_id)
                for other in view.residents(device)
                if other.num_gpus == 1 and other.job_id in present and other.job_id != victim.job_id
            ]
            drop += [job_id for bad, _, job_id in sorted(others, reverse=True) if bad > above]
            if len(drop) == 1 or not plan.fits(device, (job.job_id,), drop):
                continue
            drop = _fewest(plan, device, job.job_id, drop)
        for job_id in drop:
            plan.pause(job_id)
        plan.start(job.job_id, device)
        return True
    return False if tried else None


def _fewest(plan: Plan, device: int, add: str, drop: list[str]) -> list[str]:
    """Return the shortest run of the worst residents whose pause makes room.

    Those of the run that turn out not to be needed are left out, the best of them first.
    """
    count = next(n for n in range(2, len(drop) + 1) if plan.fits(device, (add,), drop[:n]))
    needed = drop[:count]
    for job_id in reversed(drop[: count - 1]):
        rest = [other for other in needed if other != job_id]
        if plan.fits(device, (add,), rest):
            needed = rest
    return needed

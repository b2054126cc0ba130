"""Preemption shared by several rules: start what fits, in order, else take the place of somebody worse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from loramux_policies.views import ClusterView, JobView, Plan

DEVICES_TRIED: Final = 1
"""Per search for room: that of the worst resident. A search costs most of a decision, and more gained nothing in
mean turnaround (64 devices, load 2.5: srtf 26,827 s with one, 26,845 s with four, at 0.7 of the speed).
"""


class Worse(NamedTuple):
    """Whom a waiting job may displace: residents whose badness is strictly above a limit."""

    residents: Iterable[JobView]
    """At least all of them, the worst first; may go on with others."""
    badness: Callable[[JobView], float]
    above: float


def preempt_in_order(
    view: ClusterView, plan: Plan, worse: Callable[[JobView], Worse], *, window: float = 1, nested: bool = True
) -> JobView | None:
    """Start waiting jobs in their order, pausing residents who are worse where there is no room.

    `nested`: whom a job may displace, those before it in the queue may too; once a job has nobody to displace, those
    behind it are only tried for free room; so are they after a search that found no room among the worse. Passes over
    at most `window - 1` jobs that could not start; returns the first of these, None if all could.
    """
    first: JobView | None = None
    blocked = 0
    spent = False
    for job in view.waiting(view.n_waiting):
        device_id = next(plan.candidates(job.job_id, "least-loaded"), None)
        if device_id is not None:
            plan.start(job.job_id, device_id)
            continue
        if not spent and job.num_gpus == 1:
            found = _displace(view, plan, job, worse(job))
            if found:
                continue
            spent = nested or found is False
        first = first or job
        blocked += 1
        if blocked >= window:
            break
    return first


def _displace(view: ClusterView, plan: Plan, job: JobView, worse: Worse) -> bool | None:
    """Start the job where pausing the fewest of the worst makes room. None: nobody is worse. False: no room even so.

    Gangs keep their devices, and nobody is paused in vain.
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
        if victim.job_id not in present:  # paused before, for another
            continue
        seen.add(device)
        if view.capacity_bytes(device) < job.need_bytes:  # too small a device even when empty
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
    """The shortest run of the worst that makes room, less those of it that turn out not to be needed, best first."""
    count = next(n for n in range(2, len(drop) + 1) if plan.fits(device, (add,), drop[:n]))
    needed = drop[:count]
    for job_id in reversed(drop[: count - 1]):
        rest = [other for other in needed if other != job_id]
        if plan.fits(device, (add,), rest):
            needed = rest
    return needed

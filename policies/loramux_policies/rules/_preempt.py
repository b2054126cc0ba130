"""Preemption shared by several rules: start what fits, in order, else take the place of somebody worse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain

from loramux_policies.packing import start_or_preempt
from loramux_policies.views import ClusterView, JobView, Plan


def preempt_in_order(
    view: ClusterView,
    plan: Plan,
    worse: Callable[[JobView], Iterable[JobView]],
    *,
    window: float = 1,
    nested: bool = True,
) -> JobView | None:
    """Start waiting jobs in their order, pausing residents from `worse(job)` (worst first) where there is no room.

    `nested`: whom a job may displace, those before it in the queue may too; once a job has nobody to displace, those
    behind it are only tried for free room; so are they after a search for room among the worse that found none.
    Passes over at most `window - 1` jobs that could not start; returns the first of these, None if all could.
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
            victims = iter(worse(job))
            worst = next(victims, None)
            if worst is None:
                spent = nested
            elif start_or_preempt(view, plan, job, chain((worst,), victims)):
                continue
            else:  # a search in vain costs most of a decision: one is enough until the next event
                spent = True
        first = first or job
        blocked += 1
        if blocked >= window:
            break
    return first

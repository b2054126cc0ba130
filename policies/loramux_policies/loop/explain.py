"""This module says in one sentence why a job waits, from a view and a plan.

The plan is the policy's own, or an empty one, which says what would fit now.
"""

from __future__ import annotations

from loramux_policies.errors import PlanError
from loramux_policies.loop.live_view import LiveView
from loramux_policies.loop.plan import DeltaPlan, Pause, Reject, Start
from loramux_policies.loop.snapshot import ClusterSnapshot

GIB = 2.0**30


def why(view: LiveView | ClusterSnapshot, plan: DeltaPlan, job_id: str, place: int | None = None) -> str:
    """Say what became of the job at this decision, and what it waits for.

    The text is empty before submission and after the end. `place` is the number of jobs before it
    in the queue, where the caller knows.
    """
    for action in plan.actions:
        if action.job.job_id == job_id:
            if isinstance(action, Start):
                return f"starts on device {'+'.join(map(str, action.devices))}"
            if isinstance(action, Pause):
                return "is paused for others" + _ahead(view, job_id)
            if isinstance(action, Reject):
                return f"is turned away: {action.reason}"
    try:
        device = view.device_of(job_id)
    except PlanError:  # it has not arrived yet, or has ended
        return ""
    if device is not None:
        return f"runs on device {device}"
    return f"waits: {_obstacle(view, plan, job_id)}{_ahead(view, job_id, place)}"


def in_queue(place: int) -> str:
    """Say where a job is in the queue when `place` jobs are before it."""
    if place == 0:
        return "it is first in the queue"
    return "1 job is before it in the queue" if place == 1 else f"{place:,} jobs are before it in the queue"


def _ahead(view: LiveView | ClusterSnapshot, job_id: str, place: int | None = None) -> str:
    if place is not None:
        return f"; {in_queue(place)}"
    for place, job in enumerate(view.waiting(view.n_waiting)):
        if job.job_id == job_id:
            return f"; {in_queue(place)}"
    return ""


def _obstacle(view: LiveView | ClusterSnapshot, plan: DeltaPlan, job_id: str) -> str:
    fitting = list(plan.candidates(job_id))
    if fitting:
        return f"it would fit device {fitting[0]}, but the policy keeps to its order"
    job = next((j for j in view.waiting(view.n_waiting) if j.job_id == job_id), None)
    if job is None:
        return "nothing known"
    with_seats = [d for d in range(view.n_devices) if plan.free_seats(d) > 1e-9]
    if not with_seats:
        return "every seat is taken"
    if job.num_gpus > 1:
        return f"it needs {job.num_gpus} devices at once"
    most = max(plan.free_bytes(d) for d in with_seats)
    return f"it needs up to {job.need_bytes / GIB:.2f} GiB with its base model, at most {most / GIB:.2f} GiB are free"

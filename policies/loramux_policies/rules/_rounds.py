"""This module helps the round-based rules, where all jobs compete again as a round ends.

Between the ends of rounds only free room is filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from math import floor

from loramux_policies.views import ClusterView, JobView, Plan


def start_of_round(now_s: float, round_s: float) -> bool:
    """Return whether rounds of this length, counted from time 0, begin now (to rounding)."""
    return abs(now_s - round(now_s / round_s) * round_s) <= 1e-9 * max(round_s, now_s)


def next_round_s(now_s: float, round_s: float) -> float:
    """Return the time at which the next round begins."""
    return (floor(now_s / round_s + 1e-6) + 1) * round_s


def contenders(view: ClusterView, cap: int) -> tuple[list[JobView], list[JobView]]:
    """Return all residents that can be paused, and the first `cap` waiting jobs.

    Gangs are not among the residents, because they keep their devices to the end.
    """
    residents = [job for device in range(view.n_devices) for job in view.residents(device) if job.num_gpus == 1]
    return residents, list(islice(view.waiting(view.n_waiting), cap))


def deal(view: ClusterView, ranked: Sequence[JobView]) -> Plan:
    """Return the plan under which these residents and waiting jobs, best first, get what fits.

    A resident gets a place only on the device where it is. Residents that are not named lose their
    place.
    """
    trial = view.plan()
    home = {job.job_id: view.device_of(job.job_id) for job in ranked}
    for device in range(view.n_devices):
        for job in view.residents(device):
            if job.num_gpus == 1:
                trial.pause(job.job_id)
    goes_to: dict[str, int] = {}
    for job in ranked:
        device_id = home[job.job_id]
        if device_id is None:
            device_id = next(trial.candidates(job.job_id, "least-loaded"), None)
        elif not trial.fits(device_id, add=(job.job_id,)):
            device_id = None
        if device_id is not None:
            trial.start(job.job_id, device_id)
            goes_to[job.job_id] = device_id
    plan = view.plan()
    for device in range(view.n_devices):
        for job in view.residents(device):
            if job.num_gpus == 1 and job.job_id not in goes_to:
                plan.pause(job.job_id)
    for job_id, device_id in goes_to.items():
        if home[job_id] is None:
            # a gang's other devices may differ from the trial's
            found = list(plan.candidates(job_id, "least-loaded"))
            if found:
                plan.start(job_id, device_id if device_id in found else found[0])
    return plan

"""This module holds rules that most policies share: start in order, and fuse what fits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from loramux_policies.views import ClusterView, DeviceView, Entry, FusedStep, JobView, Plan, ReadyJob, Rule


def start_in_order(view: ClusterView, plan: Plan, *, window: float = 1, rule: Rule = "least-loaded") -> None:
    """Start waiting jobs in their order, passing over at most `window - 1` that do not fit.

    With a window of 1 the head is strict: nobody overtakes it.
    """
    blocked = 0
    start_first = plan.start_first
    for job in view.waiting(view.n_waiting):
        if start_first(job.job_id, rule) is None:
            blocked += 1
            if blocked >= window:
                return


def start_or_preempt(view: ClusterView, plan: Plan, job: JobView, victims: Iterable[JobView], *, most: int = 8) -> bool:
    """Start the job where it fits, else in the place of victims; return False where neither works.

    Victims come worst first, and at most `most` are tried. They are tried device by device in the
    order given: a device is taken as soon as dropping those of its residents seen so far makes
    room. Nobody is paused in vain.
    """
    if plan.start_first(job.job_id, "least-loaded") is not None:
        return True
    if job.num_gpus > 1:
        return False
    drops: dict[int, list[str]] = {}
    tried = 0
    for victim in victims:
        device = view.device_of(victim.job_id)
        if device is None or victim.num_gpus > 1 or victim.job_id not in plan.residents(device):
            continue
        if tried >= most:
            return False
        tried += 1
        drop = drops.setdefault(device, [])
        drop.append(victim.job_id)
        if plan.fits(device, add=(job.job_id,), drop=drop):
            for job_id in _needed(plan, device, job.job_id, drop):
                plan.pause(job_id)
            plan.start(job.job_id, device)
            return True
    return False


def _needed(plan: Plan, device: int, add: str, drop: list[str]) -> list[str]:
    """Return the victims without those whose pause turned out not to be needed.

    The best victim is spared first.
    """
    needed = list(drop)
    for job_id in reversed(drop[:-1]):
        rest = [other for other in needed if other != job_id]
        if plan.fits(device, add=(add,), drop=rest):
            needed = rest
    return needed


def fuse_all(device: DeviceView) -> FusedStep:
    """Put every resident in the step.

    Where the real lengths do not fit, the step takes those that have waited longest first, as many
    as fit.
    """
    step = device.everyone()
    if step is not None:
        return step
    return as_many_as_fit(device, sorted(device.ready, key=lambda ready: -ready.waited))


def halved(device: DeviceView, job: ReadyJob) -> FusedStep:
    """Return a step of one job alone, with its micro-batch halved until it fits.

    A single row runs in any case. Admission reserved for a row of the job's maximum length, so by
    the upper bound it fits; where the device runs out of memory all the same, the loop fails the
    job after a few tries, with the bytes.
    """
    rows = job.rows
    while rows > 1 and not device.fits_rows(job, rows):
        rows = (rows + 1) // 2
    return FusedStep(device.base_model, (Entry(job.job_id, rows),))


def as_many_as_fit(device: DeviceView, jobs: Sequence[ReadyJob]) -> FusedStep:
    """Return a step of as many of these jobs as fit together.

    They are taken in this order, passing over what no longer fits. The step has at least the first
    job, halved if need be.
    """
    if device.fits(jobs):
        return device.step(jobs)
    chosen: list[ReadyJob] = []
    for job in jobs:
        if device.fits([*chosen, job]):
            chosen.append(job)
    return device.step(chosen) if chosen else halved(device, jobs[0])

"""This module holds EASY backfilling (Lifka 1995), with a reservation in memory and in time."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.views import ClusterView, JobView, Plan


class _Promise(NamedTuple):
    """Says when the head of the queue will start, and which residents will have ended by then.

    `gone` lists those residents for each device that is reserved for the head.
    """

    time_s: float
    gone: dict[int, list[str]]


@register("easy")
class Easy(Policy):
    """Reserve memory and time for the blocked head (EASY); later jobs start where they keep it.

    The reservation is the device (for a gang, the devices) where the residents' predicted ends make
    room first. Other devices are free to all. On a reserved device a job starts only if it ends
    before the reserved time (reckoned at an equal share of the device) or if the head will fit
    beside it. A job that joins residents may slow them down, and the head with them, which no
    policy can foresee. So nobody joins residents of a reserved device that run more than `slowdown`
    times slower than alone (1: only where co-running is free; 0: nobody at all). `window`: waiting
    jobs looked at behind the head. Gangs are not backfilled.
    """

    def __init__(self, window: int = 64, slowdown: float = 1.05) -> None:
        if window < 1 or not slowdown >= 0.0:
            raise ValueError(f"window must be at least 1 and slowdown not negative, not {window} and {slowdown}")
        self.window = window
        self.slowdown = slowdown

    def place(self, view: ClusterView) -> Plan:
        """Start jobs from the head of the queue, then backfill behind the first blocked one."""
        plan = view.plan()
        waiting = iter(view.waiting(view.n_waiting))
        head = None
        for job in waiting:
            device_id = next(plan.candidates(job.job_id, "least-loaded"), None)
            if device_id is None:
                head = job
                break
            plan.start(job.job_id, device_id)
        if head is None:
            return plan
        promise: _Promise | None = None
        for job in islice(waiting, self.window):
            if job.num_gpus > 1:
                continue
            for device_id in plan.candidates(job.job_id, "least-loaded"):
                promise = promise or self._promise(view, plan, head)
                if device_id not in promise.gone:
                    plan.start(job.job_id, device_id)
                    break
                if self._keeps(view, plan, promise, head, job, device_id):
                    break
        return plan

    def _promise(self, view: ClusterView, plan: Plan, head: JobView) -> _Promise:
        """Return the earliest time at which enough devices have room for the head."""
        ends: dict[int, list[tuple[float, str]]] = {}
        times: list[tuple[float, int]] = []
        for device_id in range(view.n_devices):
            ids = plan.residents(device_id)
            running = {job.job_id for job in view.residents(device_id)}
            ends[device_id] = sorted((self._end_s(view, i, i in running, len(ids)), i) for i in ids)
            gone: list[str] = []
            if plan.fits(device_id, add=(head.job_id,)):
                times.append((view.now_s, device_id))
                continue
            for end_s, job_id in ends[device_id]:
                gone.append(job_id)
                if plan.fits(device_id, add=(head.job_id,), drop=gone):
                    times.append((end_s, device_id))
                    break
        reserved = sorted(times)[: head.num_gpus]
        time_s = reserved[-1][0] if reserved else float("inf")
        return _Promise(time_s, {d: [i for end_s, i in ends[d] if end_s <= time_s] for _, d in reserved})

    @staticmethod
    def _end_s(view: ClusterView, job_id: str, running: bool, residents: int) -> float:
        return view.finish_s(job_id) if running else view.now_s + view.remaining_s(job_id) * residents

    def _keeps(
        self, view: ClusterView, plan: Plan, promise: _Promise, head: JobView, job: JobView, device_id: int
    ) -> bool:
        """Start the job on a reserved device if the reservation holds all the same.

        Returns whether the job was started.
        """
        residents = view.residents(device_id)
        for resident in residents:
            left_s = view.remaining_s(resident.job_id)
            if view.finish_s(resident.job_id) - view.now_s > self.slowdown * left_s + 1e-9 * view.now_s:
                return False
        sharing = len(plan.residents(device_id)) + 1
        ends_before = view.now_s + job.remaining_s * sharing <= promise.time_s
        if not ends_before and not plan.fits(device_id, (head.job_id, job.job_id), promise.gone[device_id]):
            return False
        plan.start(job.job_id, device_id)
        if ends_before:
            promise.gone[device_id].append(job.job_id)
        return True

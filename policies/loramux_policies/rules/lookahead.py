"""This module places jobs by integer programming with a look ahead.

The program decides which waiting job starts where, now or when a resident ends.
"""

from __future__ import annotations

from itertools import islice
from typing import Final, NamedTuple

import numpy as np

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rule_helpers import start_in_order
from loramux_policies.rules._highs import Limits, zero_one_program
from loramux_policies.views import ClusterView, JobView, Plan
from loramux_traces.arrays import Floats


class _Outlook(NamedTuple):
    """Holds the free bytes and seats now and as residents end.

    The tables have one row per device looked at and one column per slot.
    """

    devices: list[int]
    slots_s: list[float]
    free: Floats
    seats: Floats


LEAST_WEIGHT: Final = 1e-3
"""Least weight of a job, as a share of the most urgent job's weight.

What weighs less than the solver's tolerance would not start even into free room.
"""


@register("lookahead-milp")
class LookaheadMilp(Policy):
    """Place the oldest waiting jobs on devices and in time by an integer program.

    What the program starts now is started. It minimises the sum of start delays, weighted by
    projected stretch per remaining second, under each device's memory and seats at every slot;
    slots are now and the next predicted ends of residents. Memory is taken as additive (the
    increment each job shows alone); a start that does not hold is left out. HiGHS solves it to
    `nodes` branches and to no time limit, so that the result is the same on every machine.
    `window`: waiting jobs. `devices`, `slots`: devices and points in time looked at. Gangs start
    greedily.
    """

    def __init__(self, window: int = 10, devices: int = 4, slots: int = 4, nodes: int = 100) -> None:
        if min(window, devices, slots, nodes) < 1:
            raise ValueError(f"parameters must be at least 1: {window}, {devices}, {slots}, {nodes}")
        self.window = window
        self.devices = devices
        self.slots = slots
        self.nodes = nodes

    def place(self, view: ClusterView) -> Plan:
        """Start everything if it fits; otherwise start what the program starts now."""
        greedy = view.plan()
        jobs = list(islice(view.waiting(view.n_waiting), self.window))
        fits = [job for job in jobs if self._start(greedy, job, None)]
        if len(fits) == len(jobs) == view.n_waiting or not fits:
            return greedy
        plan = view.plan()
        for job in jobs:
            if job.num_gpus > 1:
                self._start(plan, job, None)
        chosen = self._solve(view, plan, [job for job in jobs if job.num_gpus == 1])
        if chosen is None:
            return greedy
        started = [self._start(plan, job, device_id) for job, device_id in chosen]
        if not any(started) and not any(plan.residents(device) for device in range(view.n_devices)):
            # nobody runs and nobody would start: do not wait for ever
            start_in_order(view, plan, window=self.window)
        return plan

    @staticmethod
    def _start(plan: Plan, job: JobView, device_id: int | None) -> bool:
        if device_id is None:
            device_id = next(plan.candidates(job.job_id, "least-loaded"), None)
        if device_id is None or not plan.fits(device_id, add=(job.job_id,)):
            return False
        plan.start(job.job_id, device_id)
        return True

    def _outlook(self, view: ClusterView, plan: Plan, jobs: list[JobView]) -> _Outlook:
        found = (d for job in jobs for d in islice(plan.candidates(job.job_id, "least-loaded"), self.devices))
        devices = sorted(islice(dict.fromkeys(found), self.devices))
        ends = sorted(
            (view.finish_s(r.job_id), r.job_id, row)
            for row, device in enumerate(devices)
            for r in view.residents(device)
            if r.num_gpus == 1
        )
        scratch = view.plan()
        slots_s = [view.now_s]
        columns = [[(plan.free_bytes(d), plan.free_seats(d)) for d in devices]]
        for end_s, job_id, _ in ends:
            if end_s > slots_s[-1]:
                if len(slots_s) == self.slots:
                    break
                slots_s.append(end_s)
                columns.append([])
            scratch.pause(job_id)
            columns[-1] = [(scratch.free_bytes(d), scratch.free_seats(d)) for d in devices]
        table = np.array(columns, dtype=float)
        return _Outlook(devices, slots_s, table[:, :, 0].T, table[:, :, 1].T)

    @staticmethod
    def _increment(view: ClusterView, job: JobView, device: int) -> float:
        """Return the bytes that the job adds to a device as it is now.

        The job shares its base if that is there. Where it cannot start there now, the result is
        what it needs alone.
        """
        scratch = view.plan()
        before = scratch.free_bytes(device)
        if job.job_id not in scratch.residents(device) and scratch.fits(device, add=(job.job_id,)):
            scratch.start(job.job_id, device)
            after = scratch.free_bytes(device)
            if 0.0 <= after <= before < float("inf"):
                return before - after
        return job.need_bytes

    def _solve(self, view: ClusterView, plan: Plan, jobs: list[JobView]) -> list[tuple[JobView, int]] | None:
        if not any(next(plan.candidates(job.job_id), None) is not None for job in jobs):
            return None
        outlook = self._outlook(view, plan, jobs)
        devices, slots_s = outlook.devices, outlook.slots_s
        n_jobs, n_devices, n_slots = len(jobs), len(devices), len(slots_s)
        need = np.array([[self._increment(view, job, device) for device in devices] for job in jobs])
        remaining = np.array([job.remaining_s for job in jobs])
        delay = np.array(slots_s) - view.now_s
        never = float(delay[-1] + remaining.max() + 1e-9)
        stretch = np.array([(view.now_s - job.submit_s + job.remaining_s) / job.solo_s for job in jobs])
        urgency = stretch / np.maximum(remaining, 1e-9)
        weight = np.maximum(urgency / urgency.max(), LEAST_WEIGHT) * (1.0 + 1e-3 * np.arange(n_jobs, 0, -1) / n_jobs)
        # The gain of a start over none. All devices are alike but for a tiny bonus for the lower
        # id.
        cost = -weight[:, None, None] * (1.0 - delay / never)[None, None, :] * np.ones((1, n_devices, 1))
        cost += 1e-6 * np.arange(n_devices)[None, :, None]
        limits = Limits()
        at = np.arange(n_jobs * n_devices * n_slots).reshape(n_jobs, n_devices, n_slots)
        for j in range(n_jobs):
            limits.add([(int(column), 1.0) for column in at[j].ravel()], 1.0)
        for d in range(n_devices):
            scale = max(1.0, view.capacity_bytes(devices[d]))
            for s in range(n_slots):
                there = [
                    (j, int(at[j, d, begun]))
                    for j in range(n_jobs)
                    for begun in range(s + 1)
                    if begun == s or slots_s[begun] + remaining[j] > slots_s[s]
                ]
                if outlook.free[d, s] < float("inf"):
                    room = max(0.0, outlook.free[d, s]) / scale
                    limits.add([(column, need[j, d] / scale) for j, column in there], room)
                if outlook.seats[d, s] < float("inf"):
                    limits.add([(column, 1.0) for _, column in there], float(outlook.seats[d, s]))
        solution = zero_one_program(cost.ravel(), limits, self.nodes)
        if solution is None:
            return None
        now = solution.reshape(at.shape)[:, :, 0]
        return [(jobs[j], devices[d]) for j in range(n_jobs) for d in range(n_devices) if now[j, d] > 0.5]

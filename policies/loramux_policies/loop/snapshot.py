"""A snapshot is a frozen copy of everything that a policy may see.

It answers like the facade, so that purity can be tested and runs recorded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from loramux_policies.errors import PlanError
from loramux_policies.loop.cluster import Cluster
from loramux_policies.loop.fleet import Fleet
from loramux_policies.loop.job import RUNNING, Job
from loramux_policies.loop.plan import DeltaPlan
from loramux_policies.views import Changes, JobView, Metric, Order


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """Job facts are a job's view together with what depends on where it runs."""

    view: JobView
    device_id: int | None
    finish_s: float | None
    remaining_s: float
    """Alone on the device that the job is on (the view's is on the first device type)."""
    switch_s: float
    key: tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSnapshot:
    """A snapshot is the cluster at one moment (contract: `views.ClusterView`).

    It takes O(jobs) to make; plans made from it are what-ifs.
    """

    now_s: float
    changes: Changes
    max_resident: float
    order: Order
    queue: tuple[JobView, ...]
    facts: Mapping[str, JobFacts]
    fleet: Fleet
    jobs: Mapping[str, Job]

    @property
    def n_waiting(self) -> int:
        return len(self.queue)

    @property
    def n_devices(self) -> int:
        return len(self.fleet)

    def waiting(self, n: int) -> Sequence[JobView]:
        """Return the first n waiting jobs in order."""
        return self.queue[: max(0, n)]

    def residents(self, device_id: int) -> Sequence[JobView]:
        """Return the jobs on a device, in order of their start."""
        if not 0 <= device_id < len(self.fleet):
            raise PlanError(f"no device {device_id}; there are {len(self.fleet)}, from 0")
        return [self.facts[job_id].view for job_id in self.fleet[device_id].jobs]

    def _running(self) -> list[JobFacts]:
        return [fact for fact in self.facts.values() if fact.device_id is not None]

    def preemptible(self, metric: Metric, above: float) -> Iterator[JobView]:
        """Return the residents whose metric exceeds `above`, largest first."""
        if metric not in ("attained_s", "remaining_s"):
            raise ValueError(f"unknown metric {metric!r}; known: attained_s, remaining_s")

        def value(fact: JobFacts) -> float:
            return fact.view.attained_s if metric == "attained_s" else fact.remaining_s

        found = [fact for fact in self._running() if fact.view.num_gpus == 1 and value(fact) > above]
        found.sort(key=lambda fact: (value(fact), fact.view.submit_s, fact.view.job_id), reverse=True)
        return iter([fact.view for fact in found])

    def residents_after(self, job: JobView) -> Iterator[JobView]:
        """Return the residents anywhere that the order puts behind this job, last first."""
        mine = (self.order.key(job), job.submit_s, job.job_id)
        found = sorted((f for f in self._running() if f.key > mine), key=lambda f: f.key, reverse=True)
        return iter([f.view for f in found])

    def device_of(self, job_id: str) -> int | None:
        """Return the first device of a resident; None for a waiting job."""
        return self._fact(job_id).device_id

    def remaining_s(self, job_id: str) -> float:
        """Return the predicted seconds that are left for the job, alone."""
        return self._fact(job_id).remaining_s

    def attained_s(self, job_id: str) -> float:
        """Return the service that the job has received, in seconds-alone."""
        return self._fact(job_id).view.attained_s

    def finish_s(self, job_id: str) -> float:
        """Return the predicted finish of a resident if nothing changes on its device."""
        finish_s = self._fact(job_id).finish_s
        if finish_s is None:
            raise PlanError(f"finish_s({job_id}): not running")
        return finish_s

    def switch_s(self, job_id: str) -> float:
        """Return the seconds that one pause and resume of this job cost its device."""
        return self._fact(job_id).switch_s

    def capacity_bytes(self, device_id: int) -> float:
        """Return the memory capacity of a device in bytes."""
        return self.fleet[device_id].capacity

    def used_bytes(self, device_id: int) -> float:
        """Return the upper bound of what a device's residents need, in bytes."""
        return self.fleet[device_id].used

    def snapshot(self) -> ClusterSnapshot:
        """Return this snapshot itself, as it is frozen already."""
        return self

    def plan(self) -> DeltaPlan:
        """Return an empty plan on this snapshot."""
        return DeltaPlan(self.fleet, self.jobs, self.now_s)

    def _fact(self, job_id: str) -> JobFacts:
        fact = self.facts.get(job_id)
        if fact is None:
            raise PlanError(f"no waiting or running job is called {job_id!r}")
        return fact


def take_snapshot(cluster: Cluster, now_s: float, changes: Changes) -> ClusterSnapshot:
    """Copy the state of the cluster into a snapshot.

    That is the views with current figures, the ledgers, and the jobs that they count.
    """
    facts: dict[str, JobFacts] = {}
    jobs: dict[str, Job] = {}
    for job_id, job in cluster.active.items():
        running = job.state == RUNNING
        view = cluster.current_view(job)
        facts[job_id] = JobFacts(
            view=view,
            device_id=job.devices[0] if running else None,
            finish_s=cluster.backend.finish_s(job) if running else None,
            remaining_s=cluster.remaining_s(job),
            switch_s=cluster.switch_s(job),
            key=cluster.queue.key_of(view),
        )
        jobs[job_id] = copy.copy(job)
    ledgers = [ledger.copy() for ledger in cluster.fleet]
    for ledger in ledgers:
        ledger.jobs = {job_id: jobs[job_id] for job_id in ledger.jobs}
    return ClusterSnapshot(
        now_s=now_s,
        changes=changes,
        max_resident=cluster.max_resident,
        order=cluster.queue.order,
        queue=tuple(job.view for job in cluster.queue),
        facts=facts,
        fleet=Fleet(ledgers),
        jobs=jobs,
    )

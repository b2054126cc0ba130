"""The live view is a facade over the loop's own state, made for one call of `place()`.

Nothing is copied, and the view goes stale when `place()` returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loramux_policies.errors import PlanError
from loramux_policies.loop.cluster import Cluster
from loramux_policies.loop.job import DONE, RUNNING, Job
from loramux_policies.loop.plan import DeltaPlan
from loramux_policies.loop.ranking import Ranking
from loramux_policies.loop.snapshot import ClusterSnapshot, take_snapshot
from loramux_policies.loop.waiting import CLOSED, WaitingWindow
from loramux_policies.views import Changes, JobView, Metric, StaleViewError


class LiveView:
    """A live view shows the cluster to one call of the policy (contract: `views.ClusterView`)."""

    __slots__ = ("_changes", "_cluster", "_news", "_now_s", "_plans", "_rankings", "_views", "_windows", "open")

    def __init__(self, cluster: Cluster, now_s: float, news: tuple[list[str], list[str], list[str], list[int]]) -> None:
        self._cluster = cluster
        self._now_s = now_s
        self._news = news
        self._changes: Changes | None = None
        """Made of the news when it is asked for, because few policies ask."""
        self._rankings: dict[str, Ranking] | None = None
        self._views: dict[str, JobView] | None = None
        """Views of the residents that were looked at.

        They stay as they are while the live view is open.
        """
        self.open = True
        self._windows: list[WaitingWindow] = []
        self._plans: list[DeltaPlan] = []

    def close(self) -> None:
        """Close the view with its plans and windows, as `place()` has returned."""
        self.open = False
        for plan in self._plans:
            plan._closed = True
        for window in self._windows:
            window._queue = CLOSED

    def _fresh(self) -> Cluster:
        if not self.open:
            raise StaleViewError("this view is over: place() has returned; keep view.snapshot() instead")
        return self._cluster

    @property
    def now_s(self) -> float:
        self._fresh()
        return self._now_s

    @property
    def changes(self) -> Changes:
        self._fresh()
        if self._changes is None:
            arrived, finished, paused, devices = self._news
            self._changes = Changes(tuple(arrived), tuple(finished), tuple(paused), tuple(devices))
        return self._changes

    @property
    def n_waiting(self) -> int:
        return self._cluster.queue.count if self.open else len(self._fresh().queue)

    @property
    def n_devices(self) -> int:
        return len(self._fresh().fleet)

    @property
    def max_resident(self) -> float:
        return self._fresh().max_resident

    def waiting(self, n: int) -> Sequence[JobView]:
        """Return the first n waiting jobs in order; they are read lazily."""
        window = WaitingWindow(self._cluster.queue if self.open else self._fresh().queue, n)
        self._windows.append(window)
        return window

    def residents(self, device_id: int) -> Sequence[JobView]:
        """Return the jobs on a device with current figures, in order of their start."""
        cluster = self._fresh()
        if not 0 <= device_id < len(cluster.fleet):
            raise PlanError(f"no device {device_id}; there are {len(cluster.fleet)}, from 0")
        return [self._view(job) for job in cluster.fleet[device_id].jobs.values()]

    def _view(self, job: Job) -> JobView:
        views = self._views
        if views is None:
            views = self._views = {}
        view = views.get(job.job_id)
        if view is None:
            view = views[job.job_id] = self._cluster.current_view(job)
        return view

    def preemptible(self, metric: Metric, above: float) -> Iterator[JobView]:
        """Return the residents whose metric exceeds `above`, largest first.

        A resident is looked up only when the one before was not enough.
        """
        cluster = self._fresh()
        rankings = self._rankings
        if rankings is None:
            rankings = self._rankings = {}
        ranking = rankings.get(metric)
        if ranking is None:
            if metric not in ("attained_s", "remaining_s"):
                raise ValueError(f"unknown metric {metric!r}; known: attained_s, remaining_s")
            jobs, attained, remaining = cluster.backend.progress()
            ranking = rankings[metric] = Ranking(jobs, attained if metric == "attained_s" else remaining)
        return self._largest(ranking, above) if ranking.value(0) > above else iter(())

    def _largest(self, ranking: Ranking, above: float) -> Iterator[JobView]:
        rank = 0
        while ranking.value(rank) > above:
            job = ranking.job(rank)
            if job is None:
                return
            rank += 1
            if job.state == RUNNING:
                yield self._view(job)
                if not self.open:
                    self._fresh()

    def residents_after(self, job: JobView) -> Iterator[JobView]:
        """Yield the residents anywhere that the order puts behind this job, last first."""
        cluster = self._fresh()
        mine = cluster.queue.key_of(job)
        if cluster.queue.order.moves:
            views = [self._view(r) for r in cluster.running.values()]
            behind = [(cluster.queue.key_of(v), v) for v in views]
            behind = [item for item in behind if item[0] > mine]
            behind.sort(key=lambda item: item[0], reverse=True)
            yield from (v for _, v in behind)
            return
        for resident in reversed(cluster.by_order()):
            if resident.key <= mine:
                return
            self._fresh()
            yield self._view(resident)

    def device_of(self, job_id: str) -> int | None:
        """Return the first device of a resident; None for a waiting job."""
        job = self._job(job_id)
        return job.devices[0] if job.devices else None

    def remaining_s(self, job_id: str) -> float:
        """Return the predicted seconds that are left for the job, alone."""
        return self._fresh().remaining_s(self._job(job_id))

    def attained_s(self, job_id: str) -> float:
        """Return the service that the job has received, in seconds-alone."""
        job = self._job(job_id)
        if job.state == RUNNING:
            self._cluster.backend.sync(job)
        return job.attained_s

    def finish_s(self, job_id: str) -> float:
        """Return the predicted finish of a resident if nothing changes on its device."""
        job = self._job(job_id)
        if job.state != RUNNING:
            raise PlanError(f"finish_s({job_id}): not running")
        return self._cluster.backend.finish_s(job)

    def switch_s(self, job_id: str) -> float:
        """Return the seconds that one pause and resume of this job cost its device."""
        return self._fresh().switch_s(self._job(job_id))

    def capacity_bytes(self, device_id: int) -> float:
        """Return the memory capacity of a device in bytes."""
        return self._fresh().fleet[device_id].capacity

    def used_bytes(self, device_id: int) -> float:
        """Return the upper bound of what a device's residents need, in bytes."""
        return self._fresh().fleet[device_id].used

    def snapshot(self) -> ClusterSnapshot:
        """Return a frozen copy of the view that outlives the call."""
        return take_snapshot(self._fresh(), self._now_s, self.changes)

    def plan(self) -> DeltaPlan:
        """Return a new plan without any actions."""
        cluster = self._cluster if self.open else self._fresh()
        plan = DeltaPlan(cluster.fleet, cluster.active, self._now_s)
        self._plans.append(plan)
        return plan

    def _job(self, job_id: str) -> Job:
        job = (self._cluster if self.open else self._fresh()).active.get(job_id)
        if job is None or job.state == DONE:
            raise PlanError(f"no waiting or running job is called {job_id!r}")
        return job

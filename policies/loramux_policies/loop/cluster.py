"""The cluster holds what the loop knows: its jobs, their queue and the devices they run on.

It also answers the questions that may be asked of them. Views and snapshots are made of it; the
scheduler alone changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sortedcontainers import SortedKeyList

from loramux_policies.errors import let_through
from loramux_policies.loop.backend import Backend
from loramux_policies.loop.fleet import Fleet
from loramux_policies.loop.job import RUNNING, WAITING, Job, view_of
from loramux_policies.loop.ledger import Ledger
from loramux_policies.loop.waiting import WaitingQueue
from loramux_policies.views import JobView, Order


class Cluster:
    """A cluster holds the jobs, the queue and the fleet of one run."""

    __slots__ = ("_sorted", "active", "apart", "backend", "fleet", "max_resident", "queue", "running")

    def __init__(self, order: Order, ledgers: Sequence[Ledger], backend: Backend, max_resident: float) -> None:
        self.backend = backend
        self.fleet = Fleet(ledgers)
        self.max_resident = max_resident
        """Seats per device: the user's limit or the policy's wish, whichever is smaller."""
        self.queue = WaitingQueue(order)
        self.active: dict[str, Job] = {}
        """Waiting and running jobs by id."""
        self.running: dict[str, Job] = {}
        self.apart: list[Job] = []
        """Waiting jobs that are not in the queue (`Scheduler.evict`)."""
        self._sorted: SortedKeyList[Job, tuple[object, ...]] | None = None

    # -- questions

    @property
    def n_waiting(self) -> int:
        """The number of jobs that wait, in the queue or apart from it."""
        return self.queue.count + len(self.apart)

    def current_view(self, job: Job) -> JobView:
        """Return the view of a job with its figures as of now."""
        if job.state == WAITING:
            return job.view
        self.backend.sync(job)
        return view_of(job)

    def remaining_s(self, job: Job) -> float:
        """Return the predicted seconds that are left for a job, alone on its device.

        For a waiting job they are those on the first device type.
        """
        if job.state == WAITING:
            return job.view.remaining_s
        self.backend.sync(job)
        cost = job.cost_on(self.fleet[job.devices[0]].type_index)
        return max(0.0, job.predicted_steps - job.done_steps) * cost.solo_step_s * cost.accumulation

    def switch_s(self, job: Job) -> float:
        """Return the seconds that one pause and resume of this job cost its device."""
        return 2.0 * (job.costs[0] or next(cost for cost in job.costs if cost is not None)).pause_s

    def by_order(self) -> SortedKeyList[Job, tuple[object, ...]]:
        """Return the running jobs sorted by the key they were enqueued with.

        The list is kept from the first time that a policy asks for it.
        """
        if self._sorted is None:
            self._sorted = SortedKeyList(self.running.values(), key=lambda job: job.key)
        return self._sorted

    # -- changes

    def run(self, job: Job, devices: tuple[int, ...], share: float) -> None:
        """Note that the job is a resident of these devices from now on.

        Its fleet knows already.
        """
        job.state, job.devices, job.share = RUNNING, devices, share
        self.running[job.job_id] = job
        if self._sorted is not None:
            self._resort(self._sorted.add, job)

    def leave(self, job: Job) -> tuple[int, ...]:
        """Note that the job is no resident any more, and return the devices where it was.

        Its fleet knows already.
        """
        devices = job.devices
        del self.running[job.job_id]
        if self._sorted is not None:
            self._resort(self._sorted.remove, job)
        job.devices = ()
        return devices

    def _resort(self, change: Callable[[Job], None], job: Job) -> None:
        """Change the sorted list of the running jobs, or give it up where the keys have no order.

        It is sorted again when a policy asks, and its `place()` then hears of the fault.
        """
        try:
            change(job)
        except BaseException as error:
            self._sorted = None
            let_through(error)

    def reorder(self, order: Order, max_resident: float) -> None:
        """Rebuild the fleet for another number of seats, and start an empty queue in another order.

        The same residents stay on the same devices. Each device has `max_resident` seats from now
        on.
        """
        self._sorted = None
        self.max_resident = max_resident
        self.fleet = Fleet([ledger.emptied(max_resident) for ledger in self.fleet])
        for job in self.running.values():
            for device in job.devices:
                self.fleet.add(job, device, job.share)
        self.queue = WaitingQueue(order)

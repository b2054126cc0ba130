"""The waiting queue is kept in the policy's order, and a policy reads it through a lazy window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, overload

from sortedcontainers import SortedList

from loramux_policies.loop.job import Job
from loramux_policies.views import JobView, Order, StaleViewError, first_come


class OrderFault(ValueError):
    """Means that the policy's keys put no order on the jobs.

    `other`: a job whose key does not go with that of the one that is added.
    """

    def __init__(self, what: str, other: Job | None = None) -> None:
        super().__init__(what)
        self.other = other


class WaitingQueue:
    """The queue holds waiting jobs sorted by (order key, submit_s, job_id).

    This order is total, so the order of rows in a trace never matters.
    """

    __slots__ = ("_line", "_order", "count", "order")

    def __init__(self, order: Order) -> None:
        self.order = order
        self._order = order.key
        self.count = 0
        self._line: SortedList[tuple[Any, ...]] = SortedList()
        """Keys with their job behind them.

        They are compared in C; a list sorted by a key function took twice as long.
        """

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Job]:
        for entry in self._line:
            yield entry[3]

    def __getitem__(self, index: int) -> Job:
        job: Job = self._line[index][3]
        return job

    def key_of(self, view: JobView) -> tuple[Any, ...]:
        """Return the place of a view in the order."""
        return (self._order(view), view.submit_s, view.job_id)

    def add(self, job: Job) -> None:
        """Put the job into the queue by its current view.

        First come, first served needs no view, and so makes none. Raises OrderFault where the key
        holds NaN, which is neither before nor behind anything, and what comparing keys raises.
        """
        if self._order is first_come:
            order: Any = ()
        else:
            job.key = (order := self._order(job.view),)  # what a message can show
            if order.__class__ is not tuple and not isinstance(order, (int, float, str, tuple)):
                raise OrderFault("is neither a tuple nor a number or text")
            for part in order if order.__class__ is tuple else job.key:
                if part != part or (part.__class__ is tuple and _holds_nan(part)):
                    raise OrderFault("holds NaN, or what is not equal to itself")
        submit_s, job_id = job.spec.submit_s, job.job_id
        job.key = (order, submit_s, job_id)
        try:
            self._line.add((order, submit_s, job_id, job))
        except TypeError as error:
            raise OrderFault(f"does not compare with that of every job ({error})", self._unlike(order)) from error
        self.count += 1

    def remove(self, job: Job) -> None:
        """Take the job out of the queue.

        Raises OrderFault where it is not at its place any more.
        """
        try:
            self._line.remove((*job.key, job))
        except ValueError as error:
            raise OrderFault("compares differently each time: the job is not found at its place") from error
        self.count -= 1

    def _unlike(self, order: object) -> Job | None:
        """Return the first job whose key does not compare with this one."""
        for entry in self._line:
            job: Job = entry[3]
            try:
                _ = (order,) < (entry[0],)  # what the list does
            except TypeError:
                return job
        return None


def _holds_nan(key: tuple[Any, ...]) -> bool:
    return any(part != part or (part.__class__ is tuple and _holds_nan(part)) for part in key)


class _Closed:
    """This object takes the place of the queue once `place()` has returned.

    Whatever is asked of it, the answer is StaleViewError. So an open window pays nothing for the
    check.
    """

    def __getattr__(self, name: str) -> Any:
        raise StaleViewError("this window on the queue is over: place() has returned; keep view.snapshot() instead")

    def __len__(self) -> int:
        return int(self.length)


CLOSED: Any = _Closed()


class WaitingWindow(Sequence[JobView]):
    """A window is the first `n` waiting jobs, read lazily.

    `read` says how far it was read, and so which arrivals could change the answer. Its view sets
    `_queue` to CLOSED when `place()` has returned.
    """

    __slots__ = ("_n", "_queue", "exhausted", "last", "read")

    def __init__(self, queue: WaitingQueue, n: int) -> None:
        self._queue = queue
        self._n = max(0, n)
        self.read = 0
        self.last: Job | None = None
        """The furthest job that was handed out."""
        self.exhausted = False
        """Whether the policy saw the end of the queue: then any arrival is news."""

    def __iter__(self) -> Iterator[JobView]:
        position = 0
        queue = self._queue
        for entry in islice(queue._line, self._n):
            if self._queue is not queue:
                len(self._queue)  # raises StaleViewError: the window was closed while it was read
            job: Job = entry[3]
            position += 1
            if position > self.read:
                self.read = position
                self.last = job
            yield job.seen or job.view
        if position >= len(self._queue) or position < self._n:
            self.exhausted = True

    def __len__(self) -> int:
        length = len(self._queue)
        if length <= self._n:
            self.exhausted = True
            return length
        return self._n

    @overload
    def __getitem__(self, index: int) -> JobView: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[JobView]: ...
    def __getitem__(self, index: int | slice) -> JobView | Sequence[JobView]:
        if isinstance(index, slice):
            return list(self)[index]
        length = min(self._n, len(self._queue))
        if index < 0:
            index += length
        if not 0 <= index < length:
            self.exhausted = self.exhausted or length < self._n
            raise IndexError(index)
        job = self._queue[index]
        if index >= self.read:
            self.read, self.last = index + 1, job
        return job.view

"""This module describes a pool of workers, one per device, as the scheduler sees it.

It also has a pool in this process, for tests and dry runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from loramux_runtime.live.drive.worker import DeviceWorker, StepReport, Whereabouts


class WorkerDied(Exception):
    """Means that a worker is gone, and with it every state that it held.

    The text says how it died.
    """


class WorkerPool(Protocol):
    """Describes a pool whose workers are numbered like devices.

    The calls to one worker are carried out one at a time, in order.
    """

    @property
    def size(self) -> int:
        """Number of workers in the pool."""

    @property
    def device(self) -> str:
        """What the workers' devices are, for people."""

    def tell(self, worker: int, call: str, *arguments: Any) -> None:
        """Have a worker carry out a method of `DeviceWorker` whose answer nobody waits for.

        An error in it comes with the next step.
        """

    def ask(self, worker: int, call: str, *arguments: Any) -> Any:
        """Return a worker's answer to a method of `DeviceWorker`; raises WorkerDied."""

    def request(self, worker: int, call: str, *arguments: Any) -> Any:
        """Ask for an answer without waiting; return a ticket for it."""

    def collect(self, ticket: Any) -> Any:
        """Return the answer that was asked for; raises WorkerDied."""

    def launch(self, worker: int, entries: Sequence[tuple[str, int]]) -> None:
        """Begin a fused step on a worker."""

    def wait(self, workers: Collection[int], timeout_s: float | None) -> tuple[int, StepReport | WorkerDied] | None:
        """Return the first of these workers' steps to end, or whose worker dies.

        Returns None where none does within that time.
        """

    def restart(self, worker: int) -> None:
        """Put a new worker in the place of one that is dead or not heard of.

        A worker of which nothing has been heard is killed.
        """

    def ready(self, worker: int) -> Whereabouts | None:
        """Return where a worker is that has come up; None while it has not. Raises WorkerDied."""

    def close(self) -> None:
        """End all workers of the pool."""


class InProcessPool:
    """Holds workers that are plain objects here.

    What they are told to do is done at once, in the caller's thread.
    """

    def __init__(self, size: int, make: Callable[[], DeviceWorker]) -> None:
        self._make = make
        self.workers: list[DeviceWorker | None] = [make() for _ in range(size)]
        self._landed: deque[tuple[int, StepReport]] = deque()
        self._flying: set[int] = set()
        self._errors: dict[int, Exception] = {}
        self.restarts = 0

    @property
    def size(self) -> int:
        """Number of workers in the pool."""
        return len(self.workers)

    @property
    def device(self) -> str:
        """What the workers' devices are: all of them are in this process."""
        return f"{self.size} in this process"

    def kill(self, worker: int) -> None:
        """Remove the worker, as if its process were gone.

        The result of a step that nobody has seen is gone too.
        """
        self.workers[worker] = None
        self._landed = deque(item for item in self._landed if item[0] != worker)

    def tell(self, worker: int, call: str, *arguments: Any) -> None:
        """Carry out the call now."""
        found = self.workers[worker]
        if found is not None:
            try:
                getattr(found, call)(*arguments)
            except Exception as error:
                self._errors.setdefault(worker, error)

    def ask(self, worker: int, call: str, *arguments: Any) -> Any:
        """Carry out the call now and return its answer."""
        found = self.workers[worker]
        if found is None:
            raise WorkerDied("killed")
        return getattr(found, call)(*arguments)

    def request(self, worker: int, call: str, *arguments: Any) -> Any:
        """Carry out the call now; return the answer, or the death, as the ticket."""
        try:
            return self.ask(worker, call, *arguments)
        except WorkerDied as death:
            return death

    def collect(self, ticket: Any) -> Any:
        """Return what the ticket holds, or raise the death that it holds."""
        if isinstance(ticket, WorkerDied):
            raise ticket
        return ticket

    def launch(self, worker: int, entries: Sequence[tuple[str, int]]) -> None:
        """Carry out the step now; whoever waits gets the report."""
        self._flying.add(worker)
        found = self.workers[worker]
        if worker in self._errors:
            raise self._errors.pop(worker)
        if found is not None:
            try:
                report = found.step(entries)
            except WorkerDied:
                # a fault plan's way to kill the worker in the middle of the step
                self.kill(worker)
            else:
                self._landed.append((worker, report))

    def wait(self, workers: Collection[int], timeout_s: float | None) -> tuple[int, StepReport | WorkerDied] | None:
        """Return a step that has ended or a death, else None: nothing takes time here."""
        for worker in workers:
            if worker in self._flying and self.workers[worker] is None:
                self._flying.discard(worker)
                return worker, WorkerDied("killed")
        for item in self._landed:
            if item[0] in workers:
                self._landed.remove(item)
                self._flying.discard(item[0])
                return item
        return None

    def restart(self, worker: int) -> None:
        """Put a new worker in the place of this one."""
        self.restarts += 1
        self.kill(worker)
        self._flying.discard(worker)
        self._errors.pop(worker, None)
        self.workers[worker] = self._make()

    def ready(self, worker: int) -> Whereabouts | None:
        """Return where the worker is at once: a worker in this process has no start to wait for."""
        found = self.workers[worker]
        if found is None:
            raise WorkerDied("killed")
        return found.about()

    def close(self) -> None:
        """Forget all workers of the pool."""
        self.workers = [None] * self.size

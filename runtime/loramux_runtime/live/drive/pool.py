"""A pool of workers, one per device, as the scheduler sees it; and one in this process, for tests and dry runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from loramux_runtime.live.drive.worker import DeviceWorker, StepReport, Whereabouts


class WorkerDied(Exception):
    """A worker is gone, and every state that it held. The text says how it died."""


class WorkerPool(Protocol):
    """Workers are numbered like devices. The calls to one of them are carried out one at a time, in order."""

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def device(self) -> str:
        """What their devices are, for people."""

    def tell(self, worker: int, call: str, *arguments: Any) -> None:
        """Have it carry out a method of `DeviceWorker` whose answer nobody waits for. An error in it comes with the
        next step.
        """

    def ask(self, worker: int, call: str, *arguments: Any) -> Any:
        """Its answer to a method of `DeviceWorker`. Raises WorkerDied."""

    def request(self, worker: int, call: str, *arguments: Any) -> Any:
        """Ask for the same without waiting: a ticket for the answer."""

    def collect(self, ticket: Any) -> Any:
        """The answer that was asked for. Raises WorkerDied."""

    def launch(self, worker: int, entries: Sequence[tuple[str, int]]) -> None:
        """Begin a fused step."""

    def wait(self, workers: Collection[int], timeout_s: float | None) -> tuple[int, StepReport | WorkerDied] | None:
        """The first of these workers' steps to end, or whose worker dies; None where none does within that time."""

    def restart(self, worker: int) -> None:
        """Put a new worker in the place of one that is dead, or of which nothing has been heard (it is killed)."""

    def ready(self, worker: int) -> Whereabouts | None:
        """Where a worker is that has come up; None while it has not. Raises WorkerDied."""

    def close(self) -> None:
        """End them all."""


class InProcessPool:
    """Workers that are plain objects here: what they are told to do is done at once, in the caller's thread."""

    def __init__(self, size: int, make: Callable[[], DeviceWorker]) -> None:
        self._make = make
        self.workers: list[DeviceWorker | None] = [make() for _ in range(size)]
        self._landed: deque[tuple[int, StepReport]] = deque()
        self._flying: set[int] = set()
        self._errors: dict[int, Exception] = {}
        self.restarts = 0

    @property
    def size(self) -> int:
        """Number of workers."""
        return len(self.workers)

    @property
    def device(self) -> str:
        """All of them are here."""
        return f"{self.size} in this process"

    def kill(self, worker: int) -> None:
        """Its process is gone, as far as anybody can tell; so is the result of a step that nobody has seen."""
        self.workers[worker] = None
        self._landed = deque(item for item in self._landed if item[0] != worker)

    def tell(self, worker: int, call: str, *arguments: Any) -> None:
        """Carry it out now."""
        found = self.workers[worker]
        if found is not None:
            try:
                getattr(found, call)(*arguments)
            except Exception as error:
                self._errors.setdefault(worker, error)

    def ask(self, worker: int, call: str, *arguments: Any) -> Any:
        """Carry it out now."""
        found = self.workers[worker]
        if found is None:
            raise WorkerDied("killed")
        return getattr(found, call)(*arguments)

    def request(self, worker: int, call: str, *arguments: Any) -> Any:
        """Carry it out now: the answer, or the death."""
        try:
            return self.ask(worker, call, *arguments)
        except WorkerDied as death:
            return death

    def collect(self, ticket: Any) -> Any:
        """What there was to say then."""
        if isinstance(ticket, WorkerDied):
            raise ticket
        return ticket

    def launch(self, worker: int, entries: Sequence[tuple[str, int]]) -> None:
        """Carry it out now; whoever waits gets the report."""
        self._flying.add(worker)
        found = self.workers[worker]
        if worker in self._errors:
            raise self._errors.pop(worker)
        if found is not None:
            try:
                report = found.step(entries)
            except WorkerDied:  # a fault plan's way to kill it in the middle of the step
                self.kill(worker)
            else:
                self._landed.append((worker, report))

    def wait(self, workers: Collection[int], timeout_s: float | None) -> tuple[int, StepReport | WorkerDied] | None:
        """Nothing takes time here."""
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
        """A new one."""
        self.restarts += 1
        self.kill(worker)
        self._flying.discard(worker)
        self._errors.pop(worker, None)
        self.workers[worker] = self._make()

    def ready(self, worker: int) -> Whereabouts | None:
        """At once."""
        found = self.workers[worker]
        if found is None:
            raise WorkerDied("killed")
        return found.about()

    def close(self) -> None:
        """Forget them."""
        self.workers = [None] * self.size

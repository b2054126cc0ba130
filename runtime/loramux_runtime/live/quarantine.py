"""This module keeps jobs out of the loop for a while.

They are suspects, whoever has to wait for one, and what a drain leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from loramux_policies.loop.events import Event
from loramux_policies.loop.scheduler import Scheduler
from loramux_runtime.live.state.book import Book
from loramux_runtime.live.state.job_rows import DRAINING, JobRow
from loramux_runtime.live.suspects import Suspects


class Quarantine:
    """Runs suspects (`Suspects.alone`) one at a time with nobody beside them.

    Each does so until it is past the step in which the process died. Those that are known at the
    start come first, so that nobody waits for long; one that turns up while others run (a worker
    has died) waits until nothing else is to do.
    """

    def __init__(
        self,
        book: Book,
        loop: Scheduler,
        *,
        due: Callable[[JobRow], None],
        arrive: Callable[[JobRow], None],
        reading: Callable[[str], bool],
        draining: Callable[[], bool],
    ) -> None:
        self._book, self._loop = book, loop
        self._due, self._arrive = due, arrive
        """Both have a job's rows read and take it in: `_due` unless it has to be kept here.

        `_arrive` takes it in whatever is known of it.
        """
        self._reading = reading
        """Returns whether a job's rows are still to be read: it is on its way into the loop."""
        self._draining = draining
        self._rows: dict[str, JobRow] = {}
        self._first: set[str] = set()
        """Suspects that run before any other job does."""
        self._alone: str | None = None
        """The job that has the device for itself."""

    def begin(self, rows: Iterable[JobRow]) -> None:
        """Note which suspects there are at the start of a process."""
        self._first = {row["job_id"] for row in rows if Suspects.alone(row)}

    def keep(self, row: JobRow) -> bool:
        """Keep a job that arrives if that has to be, and note why; return whether it is kept."""
        why = self._reason(row)
        if why is not None:
            self.put(row, why)
        return why is not None

    def put(self, row: JobRow, why: str) -> None:
        """Keep a job that the loop does not have."""
        self._rows[row["job_id"]] = row
        self._book.set(row["job_id"], why=why)

    def take(self, job_id: str) -> None:
        """Take a job out, because its user asks for it."""
        self._rows.pop(job_id, None)
        self._first.discard(job_id)

    def drained(self) -> None:
        """Tell the jobs that may not run any more that a drain has begun."""
        for job_id, row in self._rows.items():
            if not self._may_run(row):
                self._book.set(job_id, why=DRAINING)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def busy(self) -> bool:
        """Whether a job here is still to come, for all that is known now."""
        return any(self._may_run(row) for row in self._rows.values())

    def turn(self) -> bool:
        """Let jobs in or out at a step boundary; return whether any job has come in or gone out."""
        if self._alone is not None:
            if self._reading(self._alone):
                return False
            job = self._loop.cluster.active.get(self._alone)
            if job is not None:
                if job.job_id in self._loop.cluster.running:
                    self._loop.backend.sync(job)
                if not Suspects.past(self._book.row(self._alone), job.done_steps):
                    return False
            self._first.discard(self._alone)
            passed, self._alone = self._alone, None
            if job is not None and self._first:
                # the job is past the step; now the next one has to be alone
                self._loop.withdraw(job, Event.PAUSE, "another job has to run alone")
                self.put(self._book.row(passed), "another job has to run alone first: the scheduler died in its steps")
        elif self._loop.cluster.active:
            others = any(self._may_run(row) and not Suspects.alone(row) for row in self._rows.values())
            if self._first or not others:
                return False
        elif not self.busy:
            return False
        return self._next()

    def _next(self) -> bool:
        """Let in the jobs that may come, or the first suspect by itself."""
        before = len(self._rows)
        rows = [self._book.row(job_id) for job_id, row in self._rows.items() if self._may_run(row)]
        suspects = [row for row in rows if Suspects.alone(row)]
        if not suspects:
            self._first.clear()
        if not self._first:
            for row in rows:
                if not Suspects.alone(row):
                    del self._rows[row["job_id"]]
                    self._due(row)
        if suspects and not self._loop.cluster.active:
            row = suspects[0]
            del self._rows[row["job_id"]]
            self._alone = row["job_id"]
            self._arrive(row)
        return len(self._rows) < before

    def _may_run(self, row: JobRow) -> bool:
        return not self._draining() or row["start_s"] is not None

    def _reason(self, row: JobRow) -> str | None:
        if not self._may_run(row):
            return DRAINING
        if Suspects.alone(row):
            return "runs alone: the scheduler died in its steps"
        before = {self._alone} if self._alone is not None else self._first
        if not before:
            return None
        names = ", ".join(sorted(before)[:5])
        return f"jobs that the scheduler died with run alone first: {names}"

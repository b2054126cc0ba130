"""This module keeps track of the jobs in whose steps a scheduler process has died.

Where the process died by what it was at (it hung, crashed or ran out of memory), the jobs of that
step run alone from then on, and one with which the process dies again, alone at the same place,
fails. A kill from outside may come anywhere: after two at the same place the jobs run alone, after
three they fail. At the same place: a job that has got further since is no suspect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from loramux_policies.loop.events import Event
from loramux_runtime.live.deaths import by_its_work
from loramux_runtime.live.state.book import GONE
from loramux_runtime.live.state.job_rows import HELD, OPEN, JobRow
from loramux_runtime.live.state.marker import Doing
from loramux_runtime.live.state.store import Store
from loramux_traces.results import FAILED_CRASHED

ALONE_AFTER: Final = 2
"""Blame from which on a job runs alone: a death by the work itself brings all of it at once."""
FAILED_AFTER: Final = 3
"""Blame at which a job fails whose process died while it ran alone."""
REFUSED_AFTER: Final = 2
"""Deaths while a job is taken in after which it is not taken in any more."""


class Suspects:
    """Reads from the marker of the last process which jobs are suspects."""

    def __init__(self, store: Store, doing: Doing | None) -> None:
        self._store = store
        self._doing = doing

    @property
    def ended_by_itself(self) -> bool:
        """Whether the last process was not killed."""
        return self._doing is None or self._doing.phase == "stopped"

    @property
    def policy_hung(self) -> bool:
        """Whether the last process was killed while the policy decided."""
        return self._doing is not None and self._doing.phase == "decide" and bool(self._store.fact("hung_in_decide"))

    def note(self) -> None:
        """Count the death of the last process against the jobs that it was at.

        It writes inside the caller's transaction.
        """
        if self._doing is None or self.ended_by_itself:
            return
        # a start that came no further has counted this death already
        if self._store.fact("counted_mark") == self._doing.since_s:
            return
        self._store.set_facts(counted_mark=self._doing.since_s)
        jobs, opened = self._doing.jobs, self._store.jobs(*OPEN)
        taken_in = {**self._doing.making, **(jobs if self._doing.phase == "admit" else {})}
        self._blame_admission(row for row in opened if row["job_id"] in taken_in)
        if self._doing.phase != "step":
            return
        rows = [row for row in opened if row["job_id"] in jobs]
        for row in self.blame(rows, jobs, self._store.update, by_work=by_its_work()):
            if self.hopeless(row, alone=len(jobs) == 1):
                self._end(row, self.reason(row))

    def _blame_admission(self, rows: Iterable[JobRow]) -> None:
        """Count a death against the job that was being taken in: nobody else had a part in it."""
        for row in rows:
            deaths = row["admission_deaths"] + 1
            self._store.update(row["job_id"], admission_deaths=deaths)
            if deaths < REFUSED_AFTER:
                continue
            reason = f"the scheduler's process died {deaths} times while it took the job in"
            if row["start_s"] is None:
                self._end(row, reason)
            else:
                # what the job has learned is kept for its user to decide about
                self._store.update(row["job_id"], state=HELD, reason=reason, why=reason, **GONE)

    def _end(self, row: JobRow, reason: str) -> None:
        t_s = self._store.fact("now_s", 0.0)
        self._store.update(row["job_id"], state=FAILED_CRASHED, reason=reason, why="", finish_s=t_s, **GONE)
        self._store.add_events([{"t_s": t_s, "event": Event.CRASH, "job_id": row["job_id"], "detail": reason}])

    @staticmethod
    def blame(
        rows: Iterable[JobRow], jobs: Mapping[str, float], update: Callable[..., None], *, by_work: bool
    ) -> list[JobRow]:
        """Count the death of a process in a step against these jobs; return their rows.

        `jobs`: with the optimizer steps that they had done; `update` sets columns of a job;
        `by_work`: the process did not die by a kill from outside.
        """
        found = []
        for row in rows:
            at = jobs[row["job_id"]]
            again = row["crashed_at"] is not None and row["crashed_at"] == at
            crashes = row["crashes"] + 1 if again else 1
            if by_work:
                crashes = max(crashes, ALONE_AFTER)
            update(row["job_id"], crashes=crashes, crashed_at=at)
            row["crashes"], row["crashed_at"] = crashes, at
            found.append(row)
        return found

    @staticmethod
    def hopeless(row: JobRow, *, alone: bool) -> bool:
        """Return whether the job fails (`alone`: nobody was with it in the last step)."""
        return alone and bool(row["crashes"] >= FAILED_AFTER)

    @staticmethod
    def reason(row: JobRow) -> str:
        """Return the reason why the job fails."""
        where = int(row["crashed_at"] or 0.0) + 1
        return (
            f"the process that trains it died again and again in its step {where}, the last time with no job beside it"
        )

    @staticmethod
    def alone(row: JobRow) -> bool:
        """Return whether the job may run only with nobody beside it, until it is past the place."""
        return row["crashes"] >= ALONE_AFTER and not Suspects.past(row, row["progress_steps"])

    @staticmethod
    def past(row: JobRow, steps: float) -> bool:
        """Return whether a job with so many optimizer steps is past the place of the death.

        The place is the number of steps that it had done when its process died.
        """
        return row["crashed_at"] is None or steps > row["crashed_at"]

"""This module keeps track of the jobs in whose steps a scheduler process has died.

After two deaths at the same place they run alone, after three they fail. At the same place: a job
that has got further since is no suspect, so that kills from outside, which come anywhere, make
none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from loramux_policies.loop.events import Event
from loramux_runtime.live.state.book import GONE
from loramux_runtime.live.state.job_rows import OPEN, JobRow
from loramux_runtime.live.state.marker import Doing
from loramux_runtime.live.state.store import Store
from loramux_traces.results import FAILED_CRASHED

ALONE_AFTER: Final = 2
FAILED_AFTER: Final = 3


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
        """Count the death of the last process against the jobs of its step.

        It writes inside the caller's transaction.
        """
        if self._doing is None or self._doing.phase != "step":
            return
        # a start that came no further has counted this death already
        if self._store.fact("counted_mark") == self._doing.since_s:
            return
        self._store.set_facts(counted_mark=self._doing.since_s)
        jobs = self._doing.jobs
        for row in self.blame(jobs):
            if self.hopeless(row, alone=len(jobs) == 1):
                job_id, reason = row["job_id"], self.reason(row)
                t_s = self._store.fact("now_s", 0.0)
                self._store.update(job_id, state=FAILED_CRASHED, reason=reason, why="", finish_s=t_s, **GONE)
                self._store.add_events([{"t_s": t_s, "event": Event.CRASH, "job_id": job_id, "detail": reason}])

    def blame(self, jobs: Mapping[str, float]) -> list[JobRow]:
        """Count the death of a process in a step of these jobs against them; return their rows.

        `jobs`: with the optimizer steps that they had done.
        """
        found = []
        for row in self._store.jobs(*OPEN):
            at = jobs.get(row["job_id"])
            if at is None:
                continue
            again = row["crashed_at"] is not None and row["crashed_at"] == at
            crashes = row["crashes"] + 1 if again else 1
            self._store.update(row["job_id"], crashes=crashes, crashed_at=at)
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
        return f"the process that trains it died {row['crashes']} times in its step {where}, the last time alone"

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

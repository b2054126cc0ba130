"""Jobs in whose steps a scheduler process has died: after two deaths at the same place they run alone, after three
they fail.

At the same place: a job that has got further since is no suspect, so that kills from outside, which come anywhere, make
none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from loramux_runtime.live.marker import Doing
from loramux_runtime.live.store import Row, Store
from loramux_traces.results import FAILED_CRASHED

ALONE_AFTER: Final = 2
FAILED_AFTER: Final = 3


class Suspects:
    """What the marker of the last process tells."""

    def __init__(self, store: Store, doing: Doing | None) -> None:
        self._store = store
        self._doing = doing
        self.alone_now: str | None = None
        """The job that has been given the device for itself."""

    @property
    def policy_hung(self) -> bool:
        """The last process was killed while the policy decided."""
        return self._doing is not None and self._doing.phase == "decide" and bool(self._store.fact("hung_in_decide"))

    def note(self) -> None:
        """Count the death of the last process against the jobs of its step (inside the caller's transaction)."""
        if self._doing is None or self._doing.phase != "step":
            return
        jobs: Mapping[str, float] = self._doing.jobs
        for job_id, at in jobs.items():
            row = next((row for row in self._store.jobs() if row["job_id"] == job_id), None)
            if row is None:
                continue
            again = row["crashed_at"] is not None and row["crashed_at"] == at
            crashes = row["crashes"] + 1 if again else 1
            self._store.update(job_id, crashes=crashes, crashed_at=at)
            if crashes >= FAILED_AFTER and len(jobs) == 1:
                reason = f"the scheduler's process died {crashes} times in its step {int(at) + 1}, the last time alone"
                self._store.update(job_id, state=FAILED_CRASHED, reason=reason, why="")
                t_s = self._store.fact("now_s", 0.0)
                self._store.add_events([{"t_s": t_s, "event": "crash", "job_id": job_id, "detail": reason}])

    @staticmethod
    def alone(row: Row) -> bool:
        """Whether the job may run only with nobody beside it, until it is past the place."""
        return bool(row["crashes"] >= ALONE_AFTER and row["progress_steps"] <= row["crashed_at"])

"""This module keeps a state folder small: few rows are read of many, and old ones are deleted.

A queue that has run for a year holds ten thousand ended jobs, of 1.5 to 23 KB each.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from loramux_runtime.live.state.job_rows import OPEN, JobRow
from loramux_runtime.live.state.store import Store, as_job
from loramux_traces.errors import UsageError

RECENT_JOBS: Final = 100
"""Ended jobs that are read where not all are asked for."""
EVERY_S: Final = 3600.0
"""Seconds between two times that a scheduler deletes what it need not keep."""
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_OPEN: Final = ", ".join("?" * len(OPEN))


def span_s(text: str) -> float:
    """Return the seconds of a span such as 30d, 12h or 90m; UsageError where it is none."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhdw])", text.strip())
    if match is None:
        raise UsageError(f"{text[:40]!r} is no span of time: a number and one of s, m, h, d, w, for example 30d")
    return float(match[1]) * _UNITS[match[2]]


def newest(store: Store, ended: int | None = RECENT_JOBS) -> list[JobRow]:
    """Return the jobs that have not ended, and those `ended` that ended last (None: all).

    They are in order of submission.
    """
    if ended is None:
        return store.jobs()
    text = (
        f"SELECT * FROM jobs WHERE state IN ({_OPEN}) OR seq IN (SELECT seq FROM jobs "
        f"WHERE state NOT IN ({_OPEN}) ORDER BY COALESCE(finish_s, submit_s) DESC, seq DESC LIMIT ?) ORDER BY seq"
    )
    with store.errors():
        return [as_job(row) for row in store.db.execute(text, (*OPEN, *OPEN, ended))]


def totals(store: Store) -> dict[str, Any]:
    """Return how many jobs are in each state, and the sums of what befell them."""
    with store.errors():
        counted = store.db.execute("SELECT state, COUNT(*) AS n FROM jobs GROUP BY state")
        states = {row["state"]: row["n"] for row in counted}
        sums = store.db.execute("SELECT SUM(oom_events) AS oom, SUM(preemptions) AS off FROM jobs").fetchone()
    return {"states": states, "oom_events": sums["oom"] or 0, "preemptions": sums["off"] or 0}


def prune(store: Store, before_s: float) -> list[str]:
    """Delete the rows, curves and events of jobs that ended before that time; return their names.

    Their adapters stay: they are what the jobs were for. The times are on the state folder's clock.
    """
    db = store.db
    with store.transaction():
        found = db.execute(
            f"SELECT job_id FROM jobs WHERE state NOT IN ({_OPEN}) AND COALESCE(finish_s, submit_s, 0) < ?",
            (*OPEN, before_s),
        )
        gone = [str(row["job_id"]) for row in found]
        names = json.dumps(gone)
        inside = "IN (SELECT value FROM json_each(?))"
        for table in ("training", "jobs"):
            db.execute(f"DELETE FROM {table} WHERE job_id {inside}", (names,))
        db.execute(f"DELETE FROM commands WHERE done_unix_s IS NOT NULL AND job_id {inside}", (names,))
        db.execute(f"DELETE FROM events WHERE json_extract(row, '$.job_id') {inside}", (names,))
        db.execute("DELETE FROM samples WHERE t_s < ?", (before_s,))
    return gone


def shrink(store: Store) -> None:
    """Give the disk back what deleted rows have left."""
    with store.errors():
        store.db.execute("VACUUM")
        store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

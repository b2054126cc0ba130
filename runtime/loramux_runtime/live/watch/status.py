"""This module gives the status of a scheduler as one plain object.

It is read from the state folder whether or not the scheduler runs.
"""

from __future__ import annotations

import time
from typing import Any, Final

from loramux_runtime.live.state.job_rows import DRAINING, QUEUED, RUNNING, WAITING, JobRow
from loramux_runtime.live.state.marker import read_marker
from loramux_runtime.live.state.moments import between_s, moment, moment_of
from loramux_runtime.live.state.retention import RECENT_JOBS, newest, totals
from loramux_runtime.live.state.store import Store
from loramux_traces.locking import owner

MOST_FAILURES: Final = 3
"""Most failed jobs whose reasons people are told."""
_COLUMNS: Final = (
    "job_id", "state", "method", "priority", "user", "step", "total_steps", "loss", "tokens", "tokens_per_s",
    "predicted_bytes", "peak_bytes", "submit_s", "start_s", "finish_s", "expected_finish_s", "preemptions",
    "oom_events",
)  # fmt: skip
_FACTS: Final[dict[str, Any]] = {
    "policy": "",
    "base_model": "",
    "device": "",
    "capacity_bytes": None,
    "memory_bytes": None,
    "memory_predicted_bytes": 0.0,
    "waiting": 0,
    "resident": 0,
    "steps": 0,
    "tokens": 0,
    "tokens_per_s": 0.0,
    "overhead_share": None,
    "base_changed": None,
    "draining": False,
    "policy_errors": 0,
    "devices": 1,
    "worker_deaths": 0,
}


def read_status(store: Store, *, ended: bool = False, most_ended: int | None = RECENT_JOBS) -> dict[str, Any]:
    """Return the status in JSON types only, never NaN.

    Times are in seconds since the state folder began; bytes are of the device. `jobs` are those
    that have not ended and the `most_ended` that ended last (None: all); `states` counts all.

    `ended`: asked for by a scheduler that has ended, and only holds the folder still.
    """
    pid = None if ended else owner(store.folder)
    rows = newest(store, most_ended)
    doing = read_marker(store.folder) if pid is not None else None
    unsaved_since_s = None if doing is None else doing.unsaved_since_s
    known = store.facts()
    facts = {name: known.get(name, default) for name, default in _FACTS.items()}
    now_s = known.get("now_s", 0.0)
    updated = known.get("now_unix_s", 0.0)
    if updated:
        # the clock of the state folder goes on, whether or not anybody is there
        now_s += between_s(moment_of(known.get("now_at"), updated), moment())
    counted = totals(store)
    if pid is None:
        # who ran waits for the next scheduler
        running = counted["states"].pop(RUNNING, 0)
        counted["states"][WAITING] = counted["states"].get(WAITING, 0) + running
        facts["waiting"] += running
        facts |= {"resident": 0, "tokens_per_s": 0.0, "memory_bytes": None, "memory_predicted_bytes": 0.0}
    return {
        "schema_version": 1,
        "state_dir": str(store.folder),
        "running": pid is not None,
        "pid": pid,
        "now_s": now_s,
        "updated_unix_s": updated,
        **facts,
        "restarts": known.get("restarts", 0),
        **counted,
        "unsaved_s": None if unsaved_since_s is None else max(0.0, time.monotonic() - unsaved_since_s),
        "jobs": [_job(row, now_s, running=pid is not None, draining=facts["draining"]) for row in rows],
    }


def _job(row: JobRow, now_s: float, *, running: bool, draining: bool) -> dict[str, Any]:
    job = {name: row[name] for name in _COLUMNS}
    job["why"] = row["why"] or row["reason"]
    job["notes"] = row["notes"]
    if row["state"] == QUEUED and not (job["why"] and running):
        ahead_s = (row["submit_s"] or 0.0) - now_s
        if not running:
            job["why"] = "no scheduler is running"
        elif ahead_s > 0.0:
            job["why"] = f"is submitted in {ahead_s:.0f} s"
        else:
            job["why"] = DRAINING if draining else "its rows are still to be read"
    elif row["state"] in (RUNNING, WAITING) and not running:
        job |= {"state": WAITING, "why": "no scheduler is running", "tokens_per_s": None, "expected_finish_s": None}
    return job

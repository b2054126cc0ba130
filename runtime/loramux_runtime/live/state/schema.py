"""The tables of a state folder's database; `job_rows` says what their columns mean."""

from __future__ import annotations

import sqlite3
from typing import Final

SCHEMA_VERSION: Final = 1
SCHEMA: Final = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL UNIQUE,
    config TEXT NOT NULL,
    folder TEXT NOT NULL,
    submitted_unix_s REAL NOT NULL,
    delay_s REAL NOT NULL DEFAULT 0,
    submit_s REAL,
    state TEXT NOT NULL DEFAULT 'QUEUED',
    reason TEXT NOT NULL DEFAULT '',
    why TEXT NOT NULL DEFAULT '',
    method TEXT NOT NULL,
    priority INTEGER NOT NULL,
    user TEXT NOT NULL,
    "group" TEXT NOT NULL,
    micro_batch INTEGER,
    drawn_by INTEGER,
    data_sha256 TEXT,
    step INTEGER NOT NULL DEFAULT 0,
    total_steps INTEGER,
    progress_steps REAL NOT NULL DEFAULT 0,
    loss REAL,
    tokens INTEGER NOT NULL DEFAULT 0,
    tokens_per_s REAL,
    predicted_bytes REAL,
    peak_bytes REAL,
    start_s REAL,
    finish_s REAL,
    stopped_s REAL,
    paused_s REAL NOT NULL DEFAULT 0,
    expected_finish_s REAL,
    attained_s REAL NOT NULL DEFAULT 0,
    solo_s REAL,
    devices TEXT NOT NULL DEFAULT '',
    preemptions INTEGER NOT NULL DEFAULT 0,
    oom_events INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    crashed_at REAL,
    ran INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX jobs_by_state ON jobs (state);
CREATE TABLE training (job_id TEXT NOT NULL, step INTEGER NOT NULL, record TEXT NOT NULL, PRIMARY KEY (job_id, step))
    WITHOUT ROWID;
CREATE TABLE events (seq INTEGER PRIMARY KEY, t_s REAL NOT NULL, row TEXT NOT NULL);
CREATE TABLE samples (seq INTEGER PRIMARY KEY, t_s REAL, device_id INTEGER, memory_bytes REAL, residents INTEGER,
    waiting INTEGER);
CREATE TABLE commands (
    seq INTEGER PRIMARY KEY,
    verb TEXT NOT NULL,
    job_id TEXT NOT NULL DEFAULT '',
    argument TEXT NOT NULL DEFAULT '',
    issued_unix_s REAL NOT NULL,
    done_unix_s REAL,
    refused TEXT NOT NULL DEFAULT '',
    answer TEXT NOT NULL DEFAULT ''
);
CREATE INDEX commands_open ON commands (seq) WHERE done_unix_s IS NULL;
"""
ADDED_COLUMNS: Final = {
    "kept": "TEXT",
    "made_from": "TEXT",
    "trusted": "INTEGER NOT NULL DEFAULT 0",
    "admission_deaths": "INTEGER NOT NULL DEFAULT 0",
    "notes": "TEXT NOT NULL DEFAULT ''",
    "submitted_at": "TEXT",
}
"""Columns of `jobs` that came after version 1; a scheduler adds them to an older folder."""
NO_VALUES: Final = {
    "kept": None,
    "made_from": None,
    "trusted": 0,
    "admission_deaths": 0,
    "notes": "",
    "submitted_at": None,
}
"""What a job has in columns that its folder lacks."""


def missing_columns(db: sqlite3.Connection) -> dict[str, str]:
    """Return the columns of a job that a database lacks; none where it has been retired."""
    known = {row["name"] for row in db.execute("PRAGMA table_info(jobs)")}
    return {name: kind for name, kind in ADDED_COLUMNS.items() if known and name not in known}

"""This module keeps on the disk what an unfinished `loramux train` knows of its run.

It is one SQLite file. A commit is whole or did not happen, so that a kill at any moment leaves the
run as it was at the last one.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from loramux_traces.errors import StateError
from loramux_traces.filesafe import json_text

SCHEMA: Final = 1
Row = dict[str, Any]
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (job_id TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY, job_id TEXT NOT NULL, step INTEGER NOT NULL, value TEXT NOT NULL, UNIQUE (job_id, step)
);
CREATE TABLE IF NOT EXISTS log (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, value TEXT NOT NULL);
"""


class Journal:
    """A journal holds facts of the run, a row for each job, the records of steps, and logs.

    Each method raises StateError, which names the file, where the disk refuses or the file is not
    such a journal.
    """

    def __init__(self, file: Path, *, create: bool = False) -> None:
        self.file = file
        if file.is_symlink() or (not create and not file.is_file()):
            raise StateError(f"{file}: is {'a symlink' if file.is_symlink() else 'missing'}")
        with self._guarded():
            self._base = sqlite3.connect(file, isolation_level=None, timeout=1.0, check_same_thread=False)
        try:
            with self._guarded():
                if create:
                    self._base.executescript(_TABLES)
                    self._put("facts", {"schema_version": SCHEMA})
                version = self.facts().get("schema_version")
            if version != SCHEMA:
                raise StateError(f"{file}: has schema_version {version!r}, this loramux reads {SCHEMA}")
        except StateError:
            self._base.close()
            raise
        self._opened = self._identity()

    def close(self) -> None:
        """Close the file, with all that was written in it."""
        self._base.close()

    def facts(self) -> Row:
        """Return the facts by name."""
        with self._guarded():
            return {name: json.loads(text) for name, text in self._base.execute("SELECT name, value FROM facts")}

    def jobs(self) -> dict[str, Row]:
        """Return the row of each job that has one."""
        with self._guarded():
            return {name: json.loads(text) for name, text in self._base.execute("SELECT job_id, value FROM jobs")}

    def records(self) -> list[Row]:
        """Return the records of steps, in the order in which they were committed."""
        with self._guarded():
            return [json.loads(text) for (text,) in self._base.execute("SELECT value FROM records ORDER BY id")]

    def log(self, kind: str) -> list[Any]:
        """Return the rows of one log, in order."""
        with self._guarded():
            found = self._base.execute("SELECT value FROM log WHERE kind = ? ORDER BY id", (kind,))
            return [json.loads(text) for (text,) in found]

    def commit(
        self,
        *,
        facts: Mapping[str, Any],
        jobs: Mapping[str, Row],
        records: Iterable[Row] = (),
        logs: Mapping[str, Iterable[Any]] | None = None,
    ) -> None:
        """Write all of it in one transaction, and wait until it is on the disk.

        A record replaces that of the same step of its job.
        """
        if self._identity() != self._opened:
            # the system would go on writing into a file that nobody finds again
            raise StateError(f"{self.file}: is gone or is another file now; what came since is not on the disk")
        with self._guarded(), self._base:
            self._base.execute("BEGIN IMMEDIATE")
            self._put("facts", facts)
            self._put("jobs", jobs)
            rows = [(record["job_id"], record["step"], json_text(record)) for record in records]
            self._base.executemany("INSERT OR REPLACE INTO records (job_id, step, value) VALUES (?, ?, ?)", rows)
            entries = [(kind, json_text(row)) for kind, found in (logs or {}).items() for row in found]
            self._base.executemany("INSERT INTO log (kind, value) VALUES (?, ?)", entries)

    def _identity(self) -> tuple[int, int] | None:
        try:
            about = self.file.stat()
        except OSError:
            return None
        return about.st_dev, about.st_ino

    def _put(self, table: str, values: Mapping[str, Any]) -> None:
        rows = [(name, json_text(value)) for name, value in values.items()]
        self._base.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", rows)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, RecursionError) as error:
            raise StateError(f"{self.file}: cannot be used ({error})") from error

"""This module is the state folder's database.

It holds the queue, what became of each job, and what users ask for. Commands and scheduler meet in
it, without a socket. SQLite, WAL, synchronous=FULL: what a commit has acknowledged survives a kill
of the process and of the machine. One scheduler writes at a time (the folder's lock sees to that);
commands write rows of their own and never wait for it. No torch in here: `loramux status` reads it
in a tenth of a second.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

from loramux_runtime.live.state.connection import WAL_S, busy, is_file, looked_at, said_of, to_wal
from loramux_runtime.live.state.job_rows import CommandRow, Fields, JobRow
from loramux_runtime.live.state.marker import MARKER
from loramux_runtime.live.state.moments import moment
from loramux_runtime.live.state.schema import NO_VALUES, SCHEMA, SCHEMA_VERSION, missing_columns
from loramux_traces.errors import BusyError, StateError, UsageError, printable
from loramux_traces.filesafe import json_text
from loramux_traces.locking import LOCK, owned

DATABASE: Final = "queue.sqlite3"
PROFILE: Final = "profile.json"
"""The device profile that the scheduler has gone by, in its state folder."""
OURS: Final = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", PROFILE, MARKER, LOCK)
"""Files that a scheduler leaves in its folder before it has come up."""
PATIENCE_S: Final = 30.0
"""Seconds that a command waits for another process's lock."""
LOOK_S: Final = 0.5
"""Seconds between two times that whoever waits for the lock without end is told so."""


def as_job(row: sqlite3.Row) -> JobRow:
    """Return a row of the table `jobs` with every column."""
    # a folder of an older version that may only be read lacks the columns that came later
    return cast(JobRow, {**NO_VALUES, **dict(row)})


def discard(folder: Path) -> None:
    """Remove a database without jobs that no scheduler has run on.

    The folder goes too, if nothing else is in it.
    """
    with owned(folder):
        store = Store(folder)
        retired = _retire(store)
        store.close()
        if retired:
            for name in OURS:
                if name != LOCK:
                    (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _retire(store: Store) -> bool:
    """Make a database useless, unless it holds a job or a scheduler has run on it.

    Whoever has it open and waits to submit is refused, and acknowledged nothing that would be lost
    with the file. Returns whether the database is useless now.
    """
    with store.transaction():
        used = store.jobs() or store.fact("starts") is not None
        if not used:
            store.db.execute("DROP TABLE jobs")
    return not used


class Store:
    """Holds the database of one state folder.

    Every method that writes has committed when it returns, but those that say otherwise. Raises
    StateError where the database cannot be read or written, or is not of this version.

    Over 300 lines: all statements on these tables, a few lines each.
    """

    def __init__(self, folder: Path, *, create: bool = False, read_only: bool = False) -> None:
        self.folder = folder
        self._still_locked: Callable[[], None] | None = None
        path = folder / DATABASE
        if not create and not is_file(path):
            raise StateError(f"{folder}: no scheduler's state is here (no {DATABASE}); loramux run makes it")
        if path.is_symlink():
            raise StateError(f"{path}: is a symlink")
        with self.errors():
            if read_only:
                self._db = looked_at(path)
            else:
                self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None)
                to_wal(self._db)
                self._db.execute("PRAGMA synchronous=FULL")
            self._db.row_factory = sqlite3.Row
            self.be_patient(PATIENCE_S)
            if create and "facts" not in self._tables():
                self._make()
            else:
                self._wait_until_made()
            found = self.fact("schema_version")
            if found == SCHEMA_VERSION and not read_only:
                self._add_columns()
        if found != SCHEMA_VERSION:
            raise StateError(f"{path}: schema_version is {found!r}, this loramux reads {SCHEMA_VERSION}")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn SQLite's errors into StateErrors while it is entered."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            # OperationalError (full disk, read-only) is among these
            if busy(error):
                said = "another process has held the queue's lock for too long; nothing was changed"
                raise BusyError(f"{self.folder / DATABASE}: {said}") from error
            raise StateError(f"{self.folder / DATABASE}: {said_of(error)}") from error

    def _tables(self) -> set[str]:
        found = self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {row["name"] for row in found}

    def _wait_until_made(self) -> None:
        """Wait for a process that is making the folder at this moment (its tables come at once)."""
        until = time.monotonic() + WAL_S
        while "facts" not in self._tables():
            if time.monotonic() > until:
                raise StateError(f"{self.folder}: no scheduler's state is here, its database is empty")
            time.sleep(0.02)

    def wait_for_lock(self, still_locked: Callable[[], None]) -> None:
        """Wait for the lock of another process without end, from now on.

        `still_locked` is called again and again meanwhile; what it raises ends the wait.
        """
        self.be_patient(LOOK_S)
        self._still_locked = still_locked

    def be_patient(self, seconds: float) -> None:
        """Wait so long, from now on, for the lock of another process (`BusyError` after that)."""
        self._still_locked = None
        with self.errors():
            self._db.execute(f"PRAGMA busy_timeout={int(1000 * seconds)}")

    def _add_columns(self) -> None:
        """Give a folder of an older version the columns of a job that it lacks."""
        if missing_columns(self._db):
            with self.transaction():
                # somebody else may have come first
                for name, kind in missing_columns(self._db).items():
                    self._db.execute(f"ALTER TABLE jobs ADD COLUMN {name} {kind}")

    def _make(self) -> None:
        with self.transaction():
            if "facts" not in self._tables():
                for statement in SCHEMA.split(";"):
                    if statement.strip():
                        self._db.execute(statement)
                self._add_columns()
                self._put_fact("schema_version", SCHEMA_VERSION)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all that is written inside together, or not at all.

        Inside another transaction, this one is a part of that.
        """
        if self._db.in_transaction:
            yield
            return
        with self.errors():
            self._begin()
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _begin(self) -> None:
        while True:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if self._still_locked is None or not busy(error):
                    raise
            self._still_locked()

    @property
    def version(self) -> int:
        """Number that changes when another process has committed something.

        To ask for it is cheap: no file is read.
        """
        with self.errors():
            return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    # -- facts of the scheduler

    def fact(self, name: str, default: Any = None) -> Any:
        """Return a fact by name; it is any JSON value."""
        with self.errors():
            row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if row is None else json.loads(row["value"])

    def facts(self) -> dict[str, Any]:
        """Return all facts by name."""
        with self.errors():
            return {row["name"]: json.loads(row["value"]) for row in self._db.execute("SELECT * FROM facts")}

    def set_facts(self, **facts: Any) -> None:
        with self.transaction():
            for name, value in facts.items():
                self._put_fact(name, value)

    def _put_fact(self, name: str, value: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json_text(value)))

    # -- jobs

    def submit(self, jobs: Sequence[tuple[Mapping[str, Any], Path, float]], *, at_s: bool = False) -> None:
        """Put jobs into the queue, all or none.

        Each is (configuration as JSON, folder of relative paths, delay in seconds). `at_s`: the
        third is the time of submission on the scheduler's own clock. UsageError where an id is
        taken.
        """
        now = moment()
        with self.transaction():
            for config, folder, when_s in jobs:
                if (self.folder / "adapters" / config["id"]).exists():
                    # its job has been pruned: another of that name would take its place
                    raise UsageError(f"job {config['id']}: adapters/{config['id']} is there already; move it away")
                values = {
                    "job_id": config["id"],
                    "config": json_text(config),
                    "folder": str(folder),
                    "submitted_unix_s": now["unix_s"],
                    "submitted_at": json_text(now),
                    "delay_s": 0.0 if at_s else when_s,
                    "submit_s": when_s if at_s else None,
                    "method": config["method"],
                    "priority": config["priority"],
                    "user": config["user"],
                    "group": config["group"],
                }
                names = ", ".join(f'"{name}"' for name in values)
                marks = ", ".join("?" * len(values))
                try:
                    self._db.execute(f"INSERT INTO jobs ({names}) VALUES ({marks})", tuple(values.values()))
                except sqlite3.IntegrityError as error:
                    raise UsageError(f"job {config['id']}: there is a job of that name already") from error

    def jobs(self, *states: str) -> list[JobRow]:
        """Return the jobs in these states (none given: all), in order of submission."""
        where = f" WHERE state IN ({', '.join('?' * len(states))})" if states else ""
        with self.errors():
            return [as_job(row) for row in self._db.execute(f"SELECT * FROM jobs{where} ORDER BY seq", states)]

    def count(self, *states: str, by_s: float) -> int:
        """Count the jobs in these states that were submitted by then."""
        text = f"SELECT COUNT(*) FROM jobs WHERE state IN ({', '.join('?' * len(states))}) AND submit_s <= ?"
        with self.errors():
            return int(self._db.execute(text, (*states, by_s)).fetchone()[0])

    def jobs_after(self, seq: int, most: int | None = None) -> list[JobRow]:
        """Return the jobs submitted after the one of this number (no more than `most`)."""
        text = "SELECT * FROM jobs WHERE seq > ? ORDER BY seq LIMIT ?"
        with self.errors():
            return [as_job(row) for row in self._db.execute(text, (seq, -1 if most is None else most))]

    def job(self, job_id: str) -> JobRow:
        """Return one job; UsageError where there is none."""
        row = None
        # other texts are no ids, and bytes that are no text cannot even be asked for
        if job_id.isascii():
            with self.errors():
                row = self._db.execute("SELECT * FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
        if row is None:
            raise UsageError(f"no job is called {printable(job_id, 64)!r}")
        return as_job(row)

    def has_job(self, job_id: str) -> bool:
        """Return whether there is a job of that name."""
        with self.errors():
            return self._db.execute("SELECT 1 FROM jobs WHERE job_id = ?", (job_id,)).fetchone() is not None

    @property
    def db(self) -> sqlite3.Connection:
        """The connection, for the other modules of this room."""
        return self._db

    def update(self, job_id: str, **values: Any) -> None:
        """Set columns of a job."""
        names = ", ".join(f'"{name}" = ?' for name in values)
        with self.transaction():
            self._db.execute(f"UPDATE jobs SET {names} WHERE job_id = ?", (*values.values(), job_id))

    # -- what jobs have learned

    def add_records(self, records: Iterable[tuple[str, Fields]]) -> None:
        """Add training records: (job, record with its `step`).

        A step that is there already is replaced (by its equal).
        """
        rows = [(job_id, record["step"], json_text(record)) for job_id, record in records]
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO training VALUES (?, ?, ?)", rows)

    def forget_records(self, job_id: str, after_step: int) -> None:
        """Drop the records of steps that will be trained again."""
        with self.transaction():
            self._db.execute("DELETE FROM training WHERE job_id = ? AND step > ?", (job_id, after_step))

    def records(self, job_id: str, after_step: int = 0) -> list[Fields]:
        """Return the training records of a job in order of their steps."""
        text = "SELECT record FROM training WHERE job_id = ? AND step > ? ORDER BY step"
        with self.errors():
            return [json.loads(row["record"]) for row in self._db.execute(text, (job_id, after_step))]

    # -- the event log

    def add_events(self, rows: Iterable[Fields]) -> None:
        """Append rows to the event log."""
        with self.transaction():
            self._db.executemany(
                "INSERT INTO events (t_s, row) VALUES (?, ?)", [(row["t_s"], json_text(row)) for row in rows]
            )

    def events(self) -> Iterator[Fields]:
        """Yield the event log in the order in which things happened."""
        with self.errors():
            for row in self._db.execute("SELECT row FROM events ORDER BY seq"):
                yield json.loads(row["row"])

    def add_samples(self, rows: Iterable[tuple[float, int, float, int, int]]) -> None:
        """Append samples, each true from then on.

        They are (time, device, memory in bytes, residents, waiting jobs).
        """
        with self.transaction():
            self._db.executemany(
                "INSERT INTO samples (t_s, device_id, memory_bytes, residents, waiting) VALUES (?, ?, ?, ?, ?)", rows
            )

    def samples(self) -> list[tuple[float, int, float, int, int]]:
        """Return all samples, in order."""
        names = "t_s, device_id, memory_bytes, residents, waiting"
        with self.errors():
            return [tuple(row) for row in self._db.execute(f"SELECT {names} FROM samples ORDER BY seq")]

    # -- commands

    def command(self, verb: str, job_id: str = "", argument: str = "") -> int:
        """Ask the scheduler for something; return the command's number."""
        with self.transaction():
            cursor = self._db.execute(
                "INSERT INTO commands (verb, job_id, argument, issued_unix_s) VALUES (?, ?, ?, ?)",
                (verb, job_id, argument, time.time()),
            )
            return int(cursor.lastrowid or 0)

    def open_commands(self) -> list[CommandRow]:
        """Return the commands that have not been carried out, oldest first."""
        with self.errors():
            found = self._db.execute("SELECT * FROM commands WHERE done_unix_s IS NULL ORDER BY seq")
            return [cast(CommandRow, dict(row)) for row in found]

    def answer(self, number: int, answer: str = "", *, refused: str = "") -> None:
        """Answer a command that has been carried out, or say why it could not be."""
        with self.transaction():
            self._db.execute(
                "UPDATE commands SET done_unix_s = ?, answer = ?, refused = ? WHERE seq = ?",
                (time.time(), answer, refused, number),
            )

    def answered(self, number: int) -> CommandRow | None:
        """Return a command once it has been carried out or refused, else None."""
        with self.errors():
            row = self._db.execute("SELECT * FROM commands WHERE seq = ?", (number,)).fetchone()
        return None if row is None or row["done_unix_s"] is None else cast(CommandRow, dict(row))

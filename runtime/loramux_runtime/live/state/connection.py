"""This module opens a state folder's database as SQLite wants it."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote

from loramux_traces.errors import StateError

WAL_S: Final = 10.0
"""Seconds to wait for a process that makes the same folder at the same moment.

SQLite waits for nobody when it turns to WAL.
"""


def looked_at(path: Path) -> sqlite3.Connection:
    """Open a database in a folder that cannot be written.

    SQLite needs the -shm file of one in use; without one nobody writes, and the file is all there
    is.
    """
    mode = "mode=ro" if path.with_name(path.name + "-shm").exists() else "immutable=1"
    uri = f"file:{quote(str(path.absolute()))}?{mode}"
    return sqlite3.connect(uri, uri=True, timeout=30.0, isolation_level=None)


def to_wal(db: sqlite3.Connection) -> None:
    """Turn the database to WAL, which SQLite does only while nobody else writes."""
    until = time.monotonic() + WAL_S
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
        time.sleep(0.02)


def is_file(path: Path) -> bool:
    """Return whether a file is there; StateError where that cannot be seen."""
    try:
        return path.is_file()
    except OSError as error:
        raise StateError(f"{path.parent}: cannot be read ({error.strerror})") from error


def busy(error: sqlite3.DatabaseError) -> bool:
    """Return whether another process's lock is the cause."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def said_of(error: sqlite3.DatabaseError) -> str:
    """Return an error of SQLite in words that people know."""
    if _code(error) == sqlite3.SQLITE_READONLY:
        return "cannot be written (by this user, or on this disk)"
    return str(error)


def _code(error: sqlite3.DatabaseError) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF

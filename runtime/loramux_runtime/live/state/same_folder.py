"""This module notices that a state folder is no longer the one that a scheduler works on.

A folder may be deleted, moved, replaced, or have its database overwritten, while a scheduler has
its files open. Whatever is written then goes into the void, or into somebody else's folder.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from loramux_runtime.live.state.marker import MARKER
from loramux_runtime.live.state.nodes import Node, node
from loramux_runtime.live.state.store import DATABASE, Store
from loramux_traces.errors import StateError
from loramux_traces.locking import LOCK

_MAGIC: Final = b"SQLite format 3\0"
_HEAD_BYTES: Final = 72
_STAMP_AT, _MARK_AT = 60, 68
"""Where a SQLite file has its user version and its application id (big-endian, four bytes)."""
_WAL_HEAD_BYTES: Final = 32
_WAL_FRAME_BYTES: Final = 24
_WAL_SALT, _SHM_SALT = slice(16, 24), slice(32, 40)
"""Where the log, and the index of it in the file -shm, have what tells one log from the next."""
_SHM_BYTES: Final = 48
_MARK_S: Final = 1.0
"""Seconds to wait for a command that reads while the mark is to come into the file itself."""
_LOOKS: Final = 20
"""Looks at a log that does not fit its index: a command may be cutting it at this moment."""


class FolderGone(StateError):
    """The state folder, or a file of the queue, is not the one that this process has open."""


class SameFolder:
    """Remembers which files a scheduler has open, and compares them before it writes.

    `names` are files in the folder beside the queue's own; one that is not there at first is left
    out. `mark` is the application id that the database has from now on, which comes into the file
    once the log is written back.
    """

    def __init__(self, folder: Path, names: Iterable[str], mark: int) -> None:
        self._folder = folder
        # They stay open as long as the process lives: closing any descriptor of a file takes this
        # process's POSIX locks from it, SQLite's too, and the next reader would delete the log.
        self._database = _opened(folder / DATABASE)
        self._log, self._index = _opened(folder / f"{DATABASE}-wal"), _opened(folder / f"{DATABASE}-shm")
        head = os.pread(self._database, _HEAD_BYTES, 0)
        self._stamp = _number(head, _STAMP_AT)
        self._mark = mark
        self._marks = {mark, _number(head, _MARK_AT)}
        queue = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm")
        found = {name: node(folder / name) for name in (".", *queue, *names)}
        self.nodes: dict[str, Node] = {name: at for name, at in found.items() if at is not None}
        """Device and inode by name; `.` is the folder."""

    @property
    def mark(self) -> int | None:
        """The mark of the queue; None where it is not in the file yet."""
        return self._mark if mark_of(self._database) == self._mark else None

    def check(self) -> None:
        """Raise FolderGone where a file is missing or another one; nothing is made anew."""
        for name, known in self.nodes.items():
            now = node(self._folder / name)
            if now == known:
                continue
            what = "the state folder" if name == "." else f"its file {name}"
            how = "is not there any more (deleted or moved away)" if now is None else "has been replaced"
            raise self._gone(f"{what} {how}")
        head = os.pread(self._database, _HEAD_BYTES, 0)
        mark, stamp = _number(head, _MARK_AT), _number(head, _STAMP_AT)
        if not head.startswith(_MAGIC) or mark not in self._marks or stamp < self._stamp:
            raise self._gone(f"{DATABASE} has been overwritten")
        self._stamp = stamp
        if mark == self._mark:
            self._marks = {mark}
        if not self._log_is_whole():
            raise self._gone(f"{DATABASE}-wal has been overwritten")

    def _log_is_whole(self) -> bool:
        """Return whether the log holds what its index says."""
        for _ in range(_LOOKS):
            index = os.pread(self._index, _SHM_BYTES, 0)
            size = os.fstat(self._log).st_size
            head = os.pread(self._log, _WAL_HEAD_BYTES, 0)
            frames = int.from_bytes(index[16:20], sys.byteorder)
            page_bytes = int.from_bytes(index[14:16], sys.byteorder)
            page_bytes = 1 << 16 if page_bytes == 1 else page_bytes
            needed = _WAL_HEAD_BYTES + frames * (page_bytes + _WAL_FRAME_BYTES)
            if not frames or (size >= needed and head[_WAL_SALT] == index[_SHM_SALT]):
                return True
            time.sleep(0.005)
        return False

    def _gone(self, what: str) -> FolderGone:
        lost = "the scheduler ends here, and writes nothing more"
        return FolderGone(f"{self._folder}: {what} while the scheduler ran on it; {lost}")


def mark_of(descriptor: int) -> int:
    """Return the mark in the file of a queue that is open."""
    return _number(os.pread(descriptor, _HEAD_BYTES, 0), _MARK_AT)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise FolderGone(f"{path}: cannot be read ({error.strerror})") from error


def _number(head: bytes, at: int) -> int:
    return int.from_bytes(head[at : at + 4], "big", signed=True)


def stamp(store: Store) -> None:
    """Count a commit in the head of the database: an older copy of it has a lower number."""
    with store.transaction():
        number = int(store.db.execute("PRAGMA user_version").fetchone()[0])
        store.db.execute(f"PRAGMA user_version={min(number + 1, 2**31 - 1)}")


def watch_folder(store: Store) -> SameFolder:
    """Return what notices that a scheduler's folder is another one; it puts a mark on its queue.

    It is a new mark at each start: a copy of before has another one.
    """
    mark = 1 + secrets.randbelow(2**31 - 1)
    with store.transaction():
        store.db.execute(f"PRAGMA application_id={mark}")
        # the log is there from now on
        store.set_facts(watched_unix_s=time.time())
    found = SameFolder(store.folder, (LOCK, MARKER), mark)
    # the mark has to come into the file itself; whoever reads at this moment delays that
    store.be_patient(_MARK_S)
    with store.errors():
        store.db.execute("PRAGMA wal_checkpoint(PASSIVE)")
    return found

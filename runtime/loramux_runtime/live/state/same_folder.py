"""This module notices that a state folder is no longer the one that a scheduler works on.

A folder may be deleted, moved, replaced, or have its database overwritten, while a scheduler has
its files open. Whatever is written then goes into the void, or into somebody else's folder.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from loramux_runtime.live.state.nodes import Node, node
from loramux_runtime.live.state.store import DATABASE, Store
from loramux_traces.errors import StateError
from loramux_traces.locking import LOCK

_APPLICATION_ID_AT: Final = 68
"""Where a SQLite file has its application id (big-endian, four bytes)."""


class FolderGone(StateError):
    """The state folder, or a file of the queue, is not the one that this process has open."""


class SameFolder:
    """Remembers which files a scheduler has open, and compares them before it writes.

    `names` are files in the folder; one that is not there at first is left out. `database` is the
    SQLite file among them, and `mark` its application id.
    """

    def __init__(self, folder: Path, names: Iterable[str], database: str, mark: int) -> None:
        self._folder, self._database, self._mark = folder, database, mark
        # It stays open as long as the process lives: closing any descriptor of a file takes this
        # process's POSIX locks from it, SQLite's too, and the next reader would delete the log.
        self._descriptor = os.open(folder / database, os.O_RDONLY | os.O_CLOEXEC)
        found = {name: node(folder / name) for name in (".", *names)}
        self.nodes: dict[str, Node] = {name: at for name, at in found.items() if at is not None}
        """Device and inode by name; `.` is the folder."""

    def check(self) -> None:
        """Raise FolderGone where a file is missing or another one; nothing is made anew."""
        for name, known in self.nodes.items():
            now = node(self._folder / name)
            if now == known:
                continue
            what = "the state folder" if name == "." else f"its file {name}"
            how = "is not there any more (deleted or moved away)" if now is None else "has been replaced"
            raise FolderGone(f"{self._folder}: {what} {how} while the scheduler ran on it; {_LOST}")
        head = os.pread(self._descriptor, 4, _APPLICATION_ID_AT)
        if int.from_bytes(head, "big", signed=True) != self._mark:
            raise FolderGone(
                f"{self._folder}: {self._database} has been overwritten while the scheduler ran on it; {_LOST}"
            )


def watch_folder(store: Store) -> SameFolder:
    """Return what notices that a scheduler's folder is another one; it puts a mark on its queue."""
    with store.errors():
        mark = int(store.db.execute("PRAGMA application_id").fetchone()[0])
        if not mark:
            mark = 1 + secrets.randbelow(2**31 - 1)
            store.db.execute(f"PRAGMA application_id={mark}")
        # the mark has to be in the file itself, not in the log before it
        store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        # the log is there from now on
        store.set_facts(watched_unix_s=time.time())
    return SameFolder(store.folder, (DATABASE, f"{DATABASE}-wal", LOCK), DATABASE, mark)


_LOST: Final = "the scheduler ends here, and writes nothing more"

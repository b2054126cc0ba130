"""This module notices that a state folder is no longer the one that a scheduler works on.

A folder may be deleted, moved, replaced, or have its database overwritten, while a scheduler has
its files open. Whatever is written then goes into the void, or into somebody else's folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from loramux_traces.errors import StateError

Node = tuple[int, int]
"""Device and inode of a file."""
_APPLICATION_ID_AT: Final = 68
"""Where a SQLite file has its application id (big-endian, four bytes)."""


class FolderGone(StateError):
    """The state folder, or a file of the queue, is not the one that this process has open."""


def node(path: Path) -> Node | None:
    """Return the device and inode of a file or folder; None where there is none."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found.st_dev, found.st_ino


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


_LOST: Final = "the scheduler ends here, and writes nothing more"

"""Let only one process write into a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from loramux_traces.errors import StateError

LOCK: Final = ".loramux.lock"


@contextmanager
def owned(path: Path) -> Iterator[None]:
    """Hold the folder for this process alone.

    The folder is made if need be, and removed again where it stays empty. Raises StateError, with
    the owner's pid, while another process holds it. The kernel takes the lock from a process that
    ends in whatever way, so the file of a killed one locks nobody out.
    """
    # `prepare_folder` raises the error for these cases.
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        yield
        return
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = _take(path)
    except OSError as error:
        raise StateError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        # The file is removed before the lock is given up: nobody else has it open for long. Not
        # where the folder was replaced meanwhile: that file is somebody else's.
        if _same(path / LOCK, descriptor):
            (path / LOCK).unlink(missing_ok=True)
        os.close(descriptor)
        for folder in made:
            if not folder.is_dir() or any(folder.iterdir()):
                break
            folder.rmdir()


def owner(path: Path) -> int | None:
    """Return the pid of the process that holds the folder; None where no process does."""
    try:
        descriptor = os.open(path / LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdecimal() else None
    finally:
        os.close(descriptor)
    return None


def _take(path: Path) -> int:
    """Return an open lock file that is locked and still there (its last owner removes it)."""
    file = path / LOCK
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise StateError(
                f"{path}: process {owner or '?'} is writing into it; wait, or name another folder"
            ) from None
        try:
            if _same(file, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _same(file: Path, descriptor: int) -> bool:
    """Return whether a path still names the file that is open."""
    try:
        found, mine = os.stat(file, follow_symlinks=False), os.fstat(descriptor)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)

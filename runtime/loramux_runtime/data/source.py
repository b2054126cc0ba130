"""This module opens a data file: a regular file, no link, inside the folders that are allowed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import IO, Final

from loramux_traces.files import MAX_TABLE, open_file, real_path, reason
from loramux_traces.files import refused as invalid

_BOMB_BYTES: Final = 4 << 20
__all__ = ["check_unpacked", "file_sha256", "invalid", "locate", "open_data", "still"]


def locate(path: Path, base: Path | None = None, roots: Sequence[Path] | None = None) -> Path:
    """Return `path` resolved; a relative one starts from `base` (None: the working folder).

    With `roots`, raises InvalidInputError for a file outside all of them, also through `..` or a
    linked folder.
    """
    try:
        joined = path if base is None else base / path
        # Only the folder is resolved, so that a link in the last place is still seen, and refused,
        # when it is opened.
        where = real_path(joined.parent) / joined.name
        if joined.name in ("", ".."):
            where = real_path(joined)
        inside = roots is None or any(where.is_relative_to(real_path(root)) for root in roots)
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the path, a loop of links
        raise invalid(path, reason(error)) from error
    if not inside:
        allowed = ", ".join(str(root) for root in roots or ())
        raise invalid(path, f"must be inside {allowed}")
    return where


def open_data(path: Path) -> AbstractContextManager[IO[bytes]]:
    """Give the bytes of a regular file, and those of a .gz file unpacked.

    Raises InvalidInputError for anything else (missing, a folder, a link, a pipe, a device, a
    broken gzip), also while it is read.
    """
    return open_file(path, MAX_TABLE, "a data file", follow=False)


def check_unpacked(path: Path) -> None:
    """Raise InvalidInputError for a small .gz file that unpacks to too much.

    Unpacking takes a hundredth of the time of tokenising: a bomb is found in seconds, not after
    half an hour of rows. A large file is no bomb, and it is checked on the way.
    """
    if not path.name.endswith(".gz"):
        return
    try:
        if path.stat().st_size > _BOMB_BYTES:
            return
    except OSError:
        return
    with open_data(path) as stream:
        while stream.read(1 << 20):
            pass


def still(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is written to or replaced; nothing where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of what a data file holds (of a .gz file, unpacked).

    It is worked out once while the file stands still: a thousand jobs may have one file. Raises
    InvalidInputError for anything that is no data file.
    """
    return _sha256(path, still(path))


@lru_cache(maxsize=64)
def _sha256(path: Path, _still: tuple[int, ...]) -> str:
    digest = hashlib.sha256()
    with open_data(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

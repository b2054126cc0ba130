"""This module opens a data file: a regular file, no link, inside the folders that are allowed."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from loramux_traces.errors import InvalidInputError, Problem


def invalid(file: Path | str, allowed: str, *, value: str = "") -> InvalidInputError:
    """Return an error about a file as a whole."""
    return InvalidInputError([Problem(file=str(file), line=0, column="", value=value, allowed=allowed)])


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "is a symbolic link; give the file it points to"
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def locate(path: Path, base: Path | None = None, roots: Sequence[Path] | None = None) -> Path:
    """Return `path` resolved; a relative one starts from `base` (None: the working folder).

    With `roots`, raises InvalidInputError for a file outside all of them, also through `..` or a
    linked folder.
    """
    try:
        joined = path if base is None else base / path
        # Only the folder is resolved, so that a link in the last place is still seen, and refused,
        # when it is opened.
        where = joined.parent.resolve() / joined.name
        if joined.name in ("", ".."):
            where = joined.resolve()
        inside = roots is None or any(where.is_relative_to(root.resolve()) for root in roots)
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the path, a loop of links
        raise invalid(path, _reason(error)) from error
    if not inside:
        allowed = ", ".join(str(root) for root in roots or ())
        raise invalid(path, f"must be inside {allowed}")
    return where


def _regular(path: Path) -> IO[bytes]:
    # O_NONBLOCK: a pipe without a writer must be refused, not waited for. It changes nothing for
    # regular files.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise invalid(path, "is a folder; give a file" if stat.S_ISDIR(mode) else "must be a regular file")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a regular file, as it stands on the disk.

    Raises InvalidInputError for anything else.
    """
    try:
        with _regular(path) as stream:
            digest = hashlib.sha256()
            while block := stream.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except (OSError, ValueError) as error:
        raise invalid(path, _reason(error)) from error


@contextmanager
def open_data(path: Path) -> Iterator[IO[bytes]]:
    """Give the bytes of a regular file, and those of a .gz file unpacked.

    Raises InvalidInputError for anything else (missing, a folder, a link, a pipe, a device, a
    broken gzip), also while it is read.
    """
    try:
        with _regular(path) as stream:
            if path.name.endswith(".gz"):
                with gzip.GzipFile(fileobj=stream, mode="rb") as packed:
                    yield packed  # type: ignore[misc]  # a GzipFile serves as an IO[bytes]
            else:
                yield stream
    except (OSError, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, ValueError) and "null" not in str(error):
            raise
        raise invalid(path, _reason(error)) from error

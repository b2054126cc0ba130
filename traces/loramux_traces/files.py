"""Open a file that a stranger hands us: every reader of people's files goes through here.

Only a regular file is opened, its size is asked before a byte is read, and it is read no further
than it was long when it was opened. What a .gz file unpacks to is counted while it is read. Every
way in which this can fail is an InvalidInputError, and no file can fill the memory or hold us up.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from loramux_traces.errors import InvalidInputError, Problem
from loramux_traces.problems import Problems

#: Longest line that is read, in bytes; a longer one is not a row of a table.
MAX_LINE: Final = 1 << 20
#: Largest JSON document of rows, in bytes: its text is held in memory as a whole.
MAX_DOCUMENT: Final = 1 << 30
#: Largest YAML document of rows, in bytes: YAML is read at about a second per MiB.
MAX_YAML: Final = 64 << 20
#: Largest jobs file, profile, configuration or manifest, in bytes.
MAX_SMALL: Final = 16 << 20
#: Largest file of a tokenizer, in bytes; those of 250,000 tokens have up to 40 MiB.
MAX_TOKENIZER: Final = 256 << 20
#: Largest table (CSV, JSON lines, Parquet), in bytes; it is read row by row.
MAX_TABLE: Final = 1 << 40
#: What a .gz file may unpack to however short it is, and how often its own length beyond that. Logs
#: and text shrink to a twentieth; what shrinks to a two-hundredth was made to fill a memory.
_UNPACKED_FREE: Final = 64 << 20
_UNPACKED_TIMES: Final = 200
_CHUNK: Final = 1 << 18
_BOM: Final = "\ufeff"
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")


def refused(path: Path | str, allowed: str, *, value: str = "") -> InvalidInputError:
    """Return the error about a file as a whole."""
    return InvalidInputError([Problem(file=str(path), line=0, column="", value=value, allowed=allowed)])


def real_path(path: Path | str) -> Path:
    """Return the absolute path with links followed, also of a loop of links (it is itself).

    `Path.resolve` raises RuntimeError there before Python 3.13; whoever opens the file says what it
    is.
    """
    return Path(os.path.realpath(path))


def size_text(size: int) -> str:
    """Return a number of bytes as a message says it, for example `16 MiB`."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << power:
            return f"{size / (1 << power):.3g} {unit}"
    return f"{size} bytes"


def reason(error: Exception) -> str:
    """Return in words why a file cannot be opened or read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "is a symbolic link, or in a loop of them; give the file it points to"
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


class _AsOpened(io.RawIOBase):
    """An _AsOpened gives the bytes of a file up to the length that it had when it was opened.

    A file that has more by then is still being written, and what was read of it is not the file.
    """

    def __init__(self, descriptor: int, path: Path | str, size: int) -> None:
        self._descriptor, self._path, self._size, self._at = descriptor, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = os.lseek(self._descriptor, offset, whence)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # of any buffer
        try:
            count = os.readv(self._descriptor, [buffer])
        except OSError as error:
            raise refused(self._path, reason(error)) from error
        self._at += count
        if self._at > self._size:
            raise refused(self._path, "is being written: it grew while it was read; give it when it is whole")
        return count

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class _Counted(io.RawIOBase):
    """A _Counted gives the bytes of another stream, up to a number of bytes.

    The other one is standard input, or a .gz file that is unpacked.
    """

    def __init__(self, stream: IO[bytes], path: Path | str, most: int, said: str) -> None:
        self._stream, self._path, self._left, self._said = stream, path, most, said

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # of any buffer
        try:
            data = self._stream.read(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            raise refused(self._path, reason(error)) from error
        self._left -= len(data)
        if self._left < 0:
            raise refused(self._path, self._said)
        buffer[: len(data)] = data
        return len(data)


def _opened(path: Path | str, most_bytes: int, what: str, *, follow: bool) -> tuple[IO[bytes], int]:
    """Return (the bytes of a regular file, its size)."""
    # Looked at before it is opened, because opening a device can do something; O_NONBLOCK, because
    # a pipe that is put there in between must be refused and not waited for. For a regular file it
    # changes nothing.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        mode = os.stat(path, follow_symlinks=follow).st_mode
        if stat.S_ISLNK(mode):
            raise refused(path, "is a symbolic link; give the file it points to")
        descriptor = os.open(path, flags) if stat.S_ISREG(mode) else None
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        raise refused(path, reason(error)) from error
    if descriptor is not None:
        found = os.fstat(descriptor)
        mode = found.st_mode
        if stat.S_ISREG(mode) and found.st_size <= most_bytes:
            size = found.st_size
            return io.BufferedReader(_AsOpened(descriptor, path, size), _CHUNK), size
        os.close(descriptor)
        if stat.S_ISREG(mode):
            limit, has = size_text(most_bytes), size_text(found.st_size)
            raise refused(path, f"{what} may have at most {limit}, this file has {has}")
    raise refused(path, "is a folder; give a file" if stat.S_ISDIR(mode) else "must be a regular file")


@contextmanager
def open_file(
    path: Path | str, most_bytes: int = MAX_TABLE, what: str = "a table", *, follow: bool = True
) -> Iterator[IO[bytes]]:
    """Give the bytes of a regular file of at most `most_bytes`, and those of a .gz file unpacked.

    `what` names the kind of file in the message about its size; `follow` false refuses a symbolic
    link. Raises InvalidInputError for anything else (missing, a folder, a pipe, a device, a broken
    .gz, one that unpacks to too much, a file that grows), also while it is read.
    """
    stream, size = _opened(path, most_bytes, what, follow=follow)
    with stream:
        if not str(path).endswith(".gz"):
            yield stream
            return
        most = min(most_bytes, max(_UNPACKED_FREE, _UNPACKED_TIMES * size))
        said = f"unpacks to more than {size_text(most)}"
        said += f": {what} may have no more" if most == most_bytes else f", {_UNPACKED_TIMES} times its size or more"
        with gzip.GzipFile(fileobj=stream, mode="rb") as packed:
            counted = _Counted(packed, path, most, said)  # type: ignore[arg-type]  # a GzipFile serves as an IO[bytes]
            yield io.BufferedReader(counted, _CHUNK)


@contextmanager
def open_input(path: Path | str, most_bytes: int = MAX_TABLE, what: str = "a table") -> Iterator[tuple[str, IO[bytes]]]:
    """Open a file and give (name for messages, byte stream); `-` is standard input.

    Raises InvalidInputError as `open_file`.
    """
    if str(path) != "-":
        with open_file(path, most_bytes, what) as stream:
            yield str(path), stream
        return
    said = f"{what} may have at most {size_text(most_bytes)}"
    yield "<stdin>", io.BufferedReader(_Counted(sys.stdin.buffer, "<stdin>", most_bytes, said), _CHUNK)


def read_file(path: Path | str, most_bytes: int = MAX_SMALL, what: str = "this file") -> bytes:
    """Return the bytes of a file of at most `most_bytes`.

    Raises InvalidInputError as `open_file`.
    """
    with open_file(path, most_bytes, what) as stream:
        return stream.read()


def read_text(path: Path | str, most_bytes: int = MAX_SMALL, what: str = "this file") -> str:
    """Return the text of a UTF-8 file of at most `most_bytes`, without its byte-order mark.

    Raises InvalidInputError for anything else, with the line.
    """
    with open_file(path, most_bytes, what) as stream:
        return whole_text(stream, Problems(str(path)), most_bytes, what)


def check_folder(folder: Path, patterns: Sequence[str], most_bytes: int, what: str) -> None:
    """Refuse a folder in which a file that another library will read is too large, or is no file.

    Raises InvalidInputError as `open_file`.
    """
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            with open_file(path, most_bytes, what):
                pass


def text_lines(stream: IO[bytes], problems: Problems) -> Iterator[str]:
    """Yield the lines of a UTF-8 stream, without its byte-order mark.

    What is not text is noted as a problem. Reading stops where the stream is binary.
    """
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if number == 1 and line.startswith(_UTF16):
            problems.add(1, "", "", "must be UTF-8, this is UTF-16: save the file as UTF-8")
            return
        if len(line) > MAX_LINE:
            problems.add(number, "", line[:80].decode("utf-8", "replace"), f"a line may have at most {MAX_LINE} bytes")
            return
        if b"\0" in line:
            problems.add(number, "", line[:80].decode("utf-8", "replace"), "must be text: this line holds a NUL byte")
            return
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = line[error.start]
            problems.add(number, "", f"byte 0x{byte:02x} at {error.start + 1}", "must be UTF-8 text")
            text = line.decode("utf-8", "replace")
        yield text.removeprefix(_BOM) if number == 1 else text


def whole_text(
    stream: IO[bytes], problems: Problems, most_bytes: int = MAX_DOCUMENT, what: str = "a JSON document"
) -> str:
    """Read all of a UTF-8 document of at most `most_bytes`, without its byte-order mark.

    Raises InvalidInputError for anything else.
    """
    data = bytearray()
    while chunk := stream.read(_CHUNK):
        if not data and chunk.startswith(_UTF16):
            problems.add(1, "", "", "must be UTF-8, this is UTF-16: save the file as UTF-8")
        elif b"\0" in chunk:  # asked chunk by chunk: a sparse file ends here, whatever its length
            line = data.count(b"\n") + chunk[: chunk.index(b"\0")].count(b"\n") + 1
            problems.add(line, "", "", "must be text: this line holds a NUL byte")
        data += chunk
        if len(data) > most_bytes:
            problems.add(0, "", "", f"{what} may have at most {size_text(most_bytes)}: use CSV or JSON lines")
        problems.raise_if_any()
    try:
        return data.decode("utf-8").removeprefix(_BOM)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        problems.add(line, "", f"byte 0x{data[error.start]:02x}", "must be UTF-8 text")
        raise problems.error() from error

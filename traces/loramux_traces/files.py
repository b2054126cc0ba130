"""Open a file that a stranger hands us.

Every way in which it can fail is an InvalidInputError, and no line of it can fill the memory.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from loramux_traces.errors import InvalidInputError, Problem
from loramux_traces.problems import Problems

#: Longest line that is read, in bytes; a longer one is not a row of a table.
MAX_LINE: Final = 1 << 20
#: Largest JSON or YAML document, in bytes: these are held in memory as a whole.
MAX_DOCUMENT: Final = 1 << 30
_BOM: Final = "\ufeff"
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a directory; give a file"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


@contextmanager
def open_input(path: Path | str) -> Iterator[tuple[str, IO[bytes]]]:
    """Open a file and give (name for messages, byte stream).

    A .gz file is unpacked, and `-` is standard input. Raises InvalidInputError for a file that is
    missing, unreadable, a directory, or a broken gzip; also while it is read.
    """
    name = "<stdin>" if str(path) == "-" else str(path)
    try:
        if name == "<stdin>":
            yield name, sys.stdin.buffer
        elif name.endswith(".gz"):
            with gzip.open(path, "rb") as packed:
                yield name, packed  # type: ignore[misc]  # a GzipFile is an IO[bytes] in all but its declared type
        else:
            with Path(path).open("rb") as stream:
                yield name, stream
    except (OSError, EOFError, zlib.error, ValueError) as error:
        # A path with an embedded NUL gives a ValueError.
        if isinstance(error, ValueError) and "null" not in str(error):
            raise
        problem = Problem(file=name, line=0, column="", value="", allowed=_reason(error))
        raise InvalidInputError([problem]) from error


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


def whole_text(stream: IO[bytes], problems: Problems) -> str:
    """Read all of a UTF-8 document of at most MAX_DOCUMENT bytes.

    Raises InvalidInputError for anything else.
    """
    data = stream.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        problems.add(0, "", "", f"a JSON or YAML file may have at most {MAX_DOCUMENT} bytes: use CSV or JSON lines")
    elif b"\0" in data:
        problems.add(data[: data.index(b"\0")].count(b"\n") + 1, "", "", "must be text: this line holds a NUL byte")
    problems.raise_if_any()
    try:
        return data.decode("utf-8").removeprefix(_BOM)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        problems.add(line, "", f"byte 0x{data[error.start]:02x}", "must be UTF-8 text")
        raise problems.error() from error

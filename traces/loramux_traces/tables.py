"""Read the rows of a CSV file with their line numbers.

Our own files and every original trace are read through it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

from loramux_traces.problems import Problems

#: Most columns of a table that is read.
MAX_COLUMNS: Final = 4096
#: Longest provenance that is kept, in characters.
_MAX_COMMENT: Final = 4000


def split_comments(lines: Iterator[str]) -> tuple[str, int, Iterator[str]]:
    """Split the leading `#` lines from the rest of a file.

    Returns (their text joined by spaces, how many there were, the remaining lines).
    """
    kept: list[str] = []
    size = 0
    count = 0
    for line in lines:
        if not line.startswith("#"):
            return " ".join(kept), count, chain((line,), lines)
        count += 1
        text = " ".join(line.lstrip("#").split())
        size += len(text) + 1
        if text and size <= _MAX_COMMENT:
            kept.append(text)
    return " ".join(kept), count, iter(())


def _say(error: csv.Error) -> str:
    text = str(error)
    if "field limit" in text:
        return f"a cell may have at most {csv.field_size_limit()} characters"
    if "unexpected end of data" in text:
        return 'a quote (") is opened here and never closed'
    if "new-line character" in text:
        return "lines must end with LF or CRLF"
    return f"not a CSV row: {text}"


def csv_rows(
    lines: Iterable[str], problems: Problems, *, skipped_lines: int = 0, strip: bool = True
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line where the row begins, its cells without blanks around them).

    Empty rows are left out, and broken ones are noted as problems. `skipped_lines` is how many
    lines of the file came before `lines`; `strip` false keeps the blanks (text to learn).
    """
    reader = csv.reader(lines, strict=True)
    while True:
        start = reader.line_num + 1 + skipped_lines
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.add(start, "", "", _say(error))
            continue
        if strip:
            cells = [cell.strip() for cell in cells]
        if any(map(str.strip, cells)):
            yield start, cells

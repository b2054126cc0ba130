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
    return text if "after a blank" in text else f"not a CSV row: {text}"


def _quoted_after_blanks(lines: list[str], cells: list[str]) -> list[str]:
    """Return the cells of a row as `a, "b, c", d` means them: its quotes are no text.

    Cells without such quotes keep their blanks. Raises csv.Error where it cannot be read so.
    """
    try:
        found = next(csv.reader(lines, strict=True, skipinitialspace=True))
    except csv.Error as error:
        raise csv.Error('a quote (") after a blank: take the blank before it away, or double the quotes') from error
    if len(found) != len(cells):
        return found
    return [cell if cell.lstrip(" ") == bare else bare for cell, bare in zip(cells, found, strict=True)]


def csv_rows(
    lines: Iterable[str], problems: Problems, *, skipped_lines: int = 0, strip: bool = True
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line where the row begins, its cells without blanks around them).

    Empty rows are left out, and broken ones are noted as problems. `skipped_lines` is how many
    lines of the file came before `lines`; `strip` false keeps the blanks (text to learn).
    """
    read: list[str] = []

    def kept() -> Iterator[str]:
        for line in lines:
            read.append(line)
            yield line

    reader = csv.reader(kept(), strict=True)
    while True:
        start = reader.line_num + 1 + skipped_lines
        read.clear()
        try:
            cells = next(reader)
            maybe = ' "' in read[0] or len(read) > 1
            if maybe and any(cell.startswith(" ") and cell.lstrip(" ").startswith('"') for cell in cells):
                cells = _quoted_after_blanks(read, cells)
        except StopIteration:
            return
        except csv.Error as error:
            problems.add(start, "", "", _say(error))
            continue
        if strip:
            cells = [cell.strip() for cell in cells]
        if any(map(str.strip, cells)):
            yield start, cells

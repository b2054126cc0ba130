"""Collect what is wrong in one file.

So a user sees every bad row at once instead of the first one.
"""

from __future__ import annotations

from typing import Final

from loramux_traces.errors import InvalidInputError, Problem, printable

#: Problems that are listed one by one; those beyond it are only counted.
CAP: Final = 50
#: Problems after which the rest of a file is not read: 1 MiB of rows `{}` has 350,000 of them.
MOST: Final = 10_000
#: Longest value that is quoted in a message.
SHOWN: Final = 80


def shown(value: object) -> str:
    """Return `value` as a message quotes it.

    The text is short, and never that of a nested structure (a YAML alias bomb is huge).
    """
    if isinstance(value, str):
        return value if len(value) <= SHOWN else value[: SHOWN - 3] + "..."
    if value is None:
        return ""
    if isinstance(value, bool):
        return repr(value)
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, int):
        return str(value) if value.bit_length() < 256 else f"an integer of {value.bit_length()} bits"
    return f"a {type(value).__name__}"


class Problems:
    """A Problems object lists the problems of one file up to CAP and counts those beyond it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.listed: list[Problem] = []
        self.total = 0

    def add(self, line: int, column: str, value: object, allowed: str) -> None:
        """Note one problem; `line` 0 means the file as a whole.

        Raises InvalidInputError where there are too many to go on.
        """
        self.count(1)
        if len(self.listed) < CAP:
            column = printable(column, SHOWN)
            problem = Problem(file=self.file, line=line, column=column, value=shown(value), allowed=allowed)
            self.listed.append(problem)

    @property
    def full(self) -> bool:
        """Whether further problems are only counted, and need no words."""
        return self.total >= CAP

    def count(self, more: int) -> None:
        """Count problems that are not listed.

        Raises InvalidInputError where there are too many to go on.
        """
        self.total += more
        if self.total >= MOST:
            raise self.error()

    def error(self) -> InvalidInputError:
        """Return all problems noted so far as one error, in the order of the lines."""
        return InvalidInputError(sorted(self.listed, key=lambda p: p.line), total=self.total, whole=self.total < MOST)

    def raise_if_any(self) -> None:
        """Raise InvalidInputError if anything was noted."""
        if self.total:
            raise self.error()

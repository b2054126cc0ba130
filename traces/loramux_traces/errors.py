"""Define the errors that a user can act on, each with the exit code of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def printable(text: str, limit: int = 0) -> str:
    """Return `text` with control characters escaped, so that printing it cannot drive a terminal.

    It is cut to `limit` characters if that is given.
    """
    if limit and len(text) > limit:
        text = text[: limit - 3] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


class LoramuxError(Exception):
    """This is the base of every error that loramux raises on purpose.

    `exit_code` is what the command line returns.
    """

    exit_code = 1


class UsageError(LoramuxError):
    """A wrong argument or option was given, and nothing was read or written.

    The exit code is 2.
    """

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A Problem is one thing that is wrong in one place of an input file.

    `line` counts from 1 as an editor does (0: the file as a whole); `column` is a column or key
    name.
    """

    file: str
    line: int
    column: str
    value: str
    allowed: str

    def __str__(self) -> str:
        file = printable(self.file)
        where = f"{file}:{self.line}" if self.line else file
        column = f" column {printable(self.column)}:" if self.column else ""
        value = f" {self.value!r};" if self.value else ""
        return f"{where}:{column}{value} {printable(self.allowed)}"


class InvalidInputError(LoramuxError):
    """An input file breaks its contract.

    `problems` lists every bad place (up to a cap); `whole` says whether all of the file was looked
    at. The exit code is 2.
    """

    exit_code = 2

    def __init__(self, problems: Sequence[Problem], *, total: int | None = None, whole: bool = True) -> None:
        self.problems = tuple(problems)
        self.total = len(self.problems) if total is None else total
        lines = [str(p) for p in self.problems]
        if self.total > len(self.problems):
            rest = "" if whole else "; the rest was not read"
            lines.append(f"... and {self.total - len(self.problems)} more{rest}")
        super().__init__("\n".join(lines))


class Interrupted(BaseException):
    """A signal asks the program to end.

    Code that guards against whatever a plug-in raises must let it through.
    """


class HardwareMissingError(LoramuxError):
    """The command needs hardware that is not here.

    The exit code is 5.
    """

    exit_code = 5


class StateError(LoramuxError):
    """A state or run folder is locked, corrupt, or would be overwritten.

    The exit code is 6.
    """

    exit_code = 6


class BusyError(StateError):
    """Another process holds a lock, and has not given it up in time."""

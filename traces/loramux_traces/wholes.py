"""Read integers in JSON, however long they are.

This is a module of its own: where models are only built, pydantic is not installed.
"""

from __future__ import annotations


def whole_number(text: str) -> int | float:
    """Return an integer, or infinity where it is too long for Python to read.

    No column allows infinity, so the value is reported with its place in the file like any other
    bad one.
    """
    return int(text) if len(text) < 4000 else float(text)


class WrittenInt(int):
    """This is a whole number that knows how it was written, in case it is meant as a name.

    `0x1F` and `+31` are 31 where a number is wanted, and no user is called 31 for them.
    """

    written: str = ""

    @classmethod
    def of(cls, number: int, text: str) -> WrittenInt:
        """Return the number together with the text that it was written as."""
        made = cls(number)
        made.written = text
        return made

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

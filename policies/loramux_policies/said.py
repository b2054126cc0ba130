"""This module puts into words what other people's code hands over: objects, and errors.

Nothing here may fail itself, whatever the object or its methods do.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Final

from loramux_policies.errors import let_through

MOST_TEXT: Final = 300
"""Characters of somebody's own text, so that a huge or endless one drowns nothing."""
NOT_THEIRS: Final = ("loramux_policies", "loramux_simulator", "loramux_runtime", "sortedcontainers")
"""Packages that ask a policy, or compare its keys: a line in them tells its author nothing."""


def text_of(value: object, most: int = MOST_TEXT) -> str:
    """Return a short text of any object, one line, even where its own methods raise."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except BaseException as error:
        let_through(error)
        text = f"<{type(value).__name__} without a text>"
    text = " ".join(text[: most + 1].split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def message_of(error: BaseException) -> str:
    """Return the message of an error, one line, even where it has no text."""
    try:
        said = str(error)
    except BaseException as again:
        let_through(again)
        said = "(an error without a text)"
    return text_of(said)


def described(error: BaseException) -> str:
    """Return kind, message and, where it was raised in other people's code, the line."""
    return f"{type(error).__name__}: {message_of(error)}{line_of(error)}"


def raised(error: BaseException) -> str:
    """Say what was raised and, where it was in the policy's own code, in which line."""
    return f"raised {described(error)}"


def line_of(error: BaseException) -> str:
    """Return the last place in other people's code, in brackets, or nothing."""
    for frame in reversed(traceback.extract_tb(error.__traceback__, limit=-200)):
        path = Path(frame.filename)
        shipped = any(part in NOT_THEIRS for part in path.parts) and "rules" not in path.parts
        if not shipped and not frame.filename.startswith("<"):
            return f" ({path.name}, line {frame.lineno})"
    return ""

"""Read JSON within bounds: no key twice, no deep nesting, no number that Python cannot hold.

This is a module of its own: where models are only built, pydantic is not installed.
"""

from __future__ import annotations

import json
from typing import Any, Final

from loramux_traces.errors import printable
from loramux_traces.wholes import whole_number

MAX_DEPTH: Final = 64
"""Lists and objects inside each other."""


class JsonError(ValueError):
    """A JsonError says what is wrong with a text, and on which of its lines (0: unknown)."""

    def __init__(self, line: int, said: str) -> None:
        super().__init__(said)
        self.line, self.said = line, said


class DuplicateKeyError(ValueError):
    """A JSON object names one key twice, and it is unknown which value was meant."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise DuplicateKeyError(name)
            seen.add(name)
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


#: Takes NaN and Infinity too, as pandas writes them into rows.
ROW_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_int=whole_number)
_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_int=whole_number, parse_constant=_no_constant)


def is_deep(value: Any) -> bool:
    """Return whether lists and objects are inside each other more than MAX_DEPTH times."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return False
        level = [
            member
            for group in level
            for member in (group.values() if isinstance(group, dict) else group)
            if isinstance(member, dict | list)
        ]
    return bool(level)


def say(error: Exception) -> str:
    """Return in words why a text is no JSON that we take."""
    if isinstance(error, DuplicateKeyError):
        return f"key {printable(str(error), 80)!r} is given twice in one object"
    if isinstance(error, RecursionError):
        return f"is nested too deeply (over {MAX_DEPTH})"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg}"
    return f"not JSON: {printable(' '.join(str(error).split()), 200)}"


def parse_json(text: str) -> Any:
    """Return what a JSON text holds.

    Raises JsonError, and nothing else, for whatever is wrong with it.
    """
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise JsonError(error.lineno if isinstance(error, json.JSONDecodeError) else 0, say(error)) from error
    if is_deep(value):
        raise JsonError(0, say(RecursionError()))
    if "\\ud" in text or "\\uD" in text:  # an escape of half a character, with or without its other half
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise JsonError(0, "holds half a character (an escape from \\ud800 to \\udfff by itself)") from error
    return value

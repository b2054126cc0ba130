"""This module looks at single values of rows: empty ones, JSON texts and nulls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from loramux_traces.strict_json import JsonError, parse_json

#: What holds no other values; to ask whether it is a Mapping takes ten times as long.
_PLAIN: Final = frozenset((str, int, float, bool, type(None)))
_MAPPINGS: Final = (dict, Mapping)
_LISTS: Final = (list, tuple, set)
_HOLDING: Final = (str, list, tuple, *_MAPPINGS)


def empty(value: Any) -> bool:
    """Return whether a column has no value; null and "" are how files say "none"."""
    return value is None or (not value and isinstance(value, _HOLDING))


def unpacked(value: Any) -> Any:
    """Return what a JSON text holds, where a column is one (as data sets often keep lists)."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return parse_json(value)
        except JsonError:
            return value
    return value


def without_nulls(value: Any) -> Any:
    """Return a value without the keys that are null: Parquet gives every key to every row."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(inner) for inner in value]
    return value


def first_given(row: Mapping[Any, Any], names: Sequence[str]) -> str | None:
    """Return the first name that has a value, or else the first that is empty, or None.

    An empty value is one all the same where no other name has any.
    """
    first = None
    for name in names:
        value = row.get(name)
        if not empty(value):
            return name
        if first is None and value is not None:
            first = name
    return first


def values_within(*values: Any) -> Iterator[tuple[Any, int]]:
    """Yield these values and all that are nested in them, each with how many more are known."""
    waiting = list(values)
    while waiting:
        item = waiting.pop()
        if type(item) in _PLAIN:
            pass
        elif isinstance(item, _MAPPINGS):
            waiting.extend(item.keys())
            waiting.extend(item.values())
        elif isinstance(item, _LISTS):
            waiting.extend(item)
        yield item, len(waiting)

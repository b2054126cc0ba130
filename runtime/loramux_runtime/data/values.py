"""This module looks at single values of rows: empty ones, JSON texts and nulls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loramux_traces.strict_json import JsonError, parse_json


def empty(value: Any) -> bool:
    """Return whether a column has no value; null and "" are how files say "none"."""
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


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
    given = [name for name in names if row.get(name) is not None]
    return next((name for name in given if not empty(row[name])), given[0] if given else None)


def values_within(*values: Any) -> Iterator[tuple[Any, int]]:
    """Yield these values and all that are nested in them, each with how many more are known."""
    waiting = list(values)
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            waiting.extend(item.keys())
            waiting.extend(item.values())
        elif isinstance(item, list | tuple | set):
            waiting.extend(item)
        yield item, len(waiting)

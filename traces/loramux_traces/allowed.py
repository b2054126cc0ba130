"""Say in words what each column of jobs.csv may hold.

The words are made from the one schema, so that they always agree with it.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from typing import Any, Final

from pydantic import TypeAdapter

from loramux_traces.canonical import COLUMNS, REQUIRED
from loramux_traces.job import JobSpec

#: Prefix of columns that are kept out of the schema on purpose (notes, ids of other tools).
FREE_PREFIX: Final = "x_"

_PATTERNS: Final = {
    "job_id": "1 to 64 of A-Z a-z 0-9 _ . - beginning with a letter or digit",
    "base_model": "a name such as llama-7b or the path of a config.json: 1 to 255 of A-Z a-z 0-9 _ . : / + -",
    "ref_gpu": "1 to 128 of A-Z a-z 0-9 _ . : / + - beginning with a letter, a digit or _, such as a100-80g",
    "length_dist": "1 to 32 of a-z 0-9 _ - beginning with a letter, such as alpaca",
}
_SUBMIT: Final = "seconds from the start of the trace, from 0 to 1e10"
LENGTH_COLUMNS: Final = ("total_steps", "num_samples", "epochs", "duration_s")


@cache
def _schema() -> dict[str, Any]:
    properties: dict[str, Any] = TypeAdapter(JobSpec).json_schema()["properties"]
    return properties


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.12g}"


def _range(spec: dict[str, Any]) -> str:
    low, high = spec.get("minimum"), spec.get("maximum")
    above, below = spec.get("exclusiveMinimum"), spec.get("exclusiveMaximum")
    start = f"from {_number(low)}" if low is not None else f"above {_number(above)}" if above is not None else ""
    end = f"to {_number(high)}" if high is not None else f"to below {_number(below)}" if below is not None else ""
    return f"{start} {end}".strip()


@cache
def allowed(column: str) -> str:
    """Return what `column` may hold, for example 'a whole number from 1 to 65536'."""
    if column == "submit_s":
        return _SUBMIT
    if column in _PATTERNS:
        return _PATTERNS[column]
    spec = _schema()[column]
    for option in spec.get("anyOf", ()):
        if option.get("type") != "null":
            spec = option
    if "enum" in spec:
        return "one of " + ", ".join(spec["enum"])
    kind = spec.get("type")
    if kind == "boolean":
        return "true or false"
    if kind == "integer":
        return f"a whole number {_range(spec)}"
    if kind == "number":
        return f"a finite number {_range(spec)}"
    return f"text of at most {spec.get('maxLength', 256)} printable characters"


def schema_rows() -> list[tuple[str, str, str]]:
    """Return (column, 'required' or the default, what it may hold) for every column.

    This is the table of the documentation.
    """
    properties = _schema()
    rows = []
    for column in COLUMNS:
        default = properties[column].get("default")
        rows.append((column, "required" if column in REQUIRED else f"default {default!r}", allowed(column)))
    return rows


def unknown_column(name: str) -> str:
    """Return what to tell the user about a column that the schema does not have."""
    close = get_close_matches(name.lower(), COLUMNS, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"unknown column{hint} (a name beginning with {FREE_PREFIX} is ignored)"

"""This module finds the data that ships, and reads JSON that a stranger may have written."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from loramux_traces.errors import InvalidInputError, Problem, UsageError
from loramux_traces.files import MAX_SMALL, read_text
from loramux_traces.problems import shown
from loramux_traces.strict_json import JsonError, parse_json


def data_dir() -> Path:
    """Return the folder `profiles/data`: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "data", package.parent / "data"):
        if (folder / "shapes.json").is_file():
            return folder
    raise FileNotFoundError(f"loramux is not installed whole: no data folder at {package / 'data'}")


def problem(path: Path | str, column: str, value: object, allowed: str, line: int = 0) -> Problem:
    """Return one thing that is wrong with a file; its value is cut to what fits on a line."""
    return Problem(file=str(path), line=line, column=column, value=shown(value), allowed=allowed)


def read_json(path: Path | str, most_bytes: int = MAX_SMALL) -> dict[str, Any]:
    """Return the object in a JSON file of at most `most_bytes`.

    Raises InvalidInputError that says what is wrong with it and where.
    """
    try:
        result = parse_json(read_text(path, most_bytes, "a profile or configuration"))
    except JsonError as error:
        raise InvalidInputError([problem(path, "", "", error.said, error.line)]) from error
    if not isinstance(result, dict):
        raise InvalidInputError([problem(path, "", "", "must hold a JSON object")])
    return result


def unknown(kind: str, name: str, known: list[str], more: str = "") -> UsageError:
    """Return the error for a name that is not known, with the nearest known names."""
    close = get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return UsageError(f"unknown {kind} {name[:80]!r}{hint} (known: {', '.join(known)}{more})")


def looks_like_path(name: str) -> bool:
    """Return whether a name is meant as a path.

    A path has a separator, is `.` or `..`, or ends with .json.
    """
    return name in (".", "..") or "/" in name or "\\" in name or name.endswith(".json")

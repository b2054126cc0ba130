"""This module finds the data that ships, and reads JSON that a stranger may have written."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from loramux_traces.errors import InvalidInputError, Problem, UsageError
from loramux_traces.wholes import whole_number

MAX_BYTES: Final = 16 << 20
"""Largest size in bytes; a larger file is no profile or configuration."""


def data_dir() -> Path:
    """Return the folder `profiles/data`: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "data", package.parent / "data"):
        if (folder / "shapes.json").is_file():
            return folder
    raise FileNotFoundError(f"loramux is not installed whole: no data folder at {package / 'data'}")


def problem(path: Path | str, column: str, value: object, allowed: str, line: int = 0) -> Problem:
    """Return one thing that is wrong with a file; its value is cut to what fits on a line."""
    text = "" if value is None else str(value)
    return Problem(file=str(path), line=line, column=column, value=text[:80], allowed=allowed)


def read_json(path: Path | str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises InvalidInputError that says what is wrong with it and where.
    """

    def fail(allowed: str, line: int = 0) -> InvalidInputError:
        return InvalidInputError([problem(path, "", "", allowed, line)])

    def no_constant(name: str) -> float:
        raise ValueError(f"{name} is not a JSON number")

    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise fail("no such file") from None
    except (OSError, ValueError) as error:
        raise fail(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_BYTES:
        raise fail(f"must be at most {MAX_BYTES >> 20} MiB")
    try:
        result = json.loads(data.decode("utf-8-sig"), parse_constant=no_constant, parse_int=whole_number)
    except json.JSONDecodeError as error:
        raise fail(f"must be JSON: {error.msg}", error.lineno) from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise fail(f"must be UTF-8 JSON: {str(error)[:100]}") from error
    if not isinstance(result, dict):
        raise fail("must hold a JSON object")
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

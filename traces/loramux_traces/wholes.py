"""Integers in JSON (a module of its own: where models are only built, pydantic is not installed)."""

from __future__ import annotations


def whole_number(text: str) -> int | float:
    """Of an integer that Python refuses to read for its length, infinity: no column allows it, and it has a place."""
    return int(text) if len(text) < 4000 else float(text)

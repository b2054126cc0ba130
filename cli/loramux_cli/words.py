"""This module writes times for people to read in a terminal."""

from __future__ import annotations

from math import isfinite


def duration(seconds: float | None) -> str:
    """Return seconds as text for people: 12.3 s, 4.5 min, 6.7 h, 8.9 d; `-` where there is none."""
    if seconds is None or not isfinite(seconds):
        return "-"
    if seconds < 0.0:
        return f"-{duration(-seconds)}"
    for unit, size, upto in (("s", 1.0, 120.0), ("min", 60.0, 7200.0), ("h", 3600.0, 172800.0)):
        if seconds < upto:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400.0:,.1f} d"


def gain(seconds: float | None) -> str:
    """Return a difference of times with its sign: +12.3 s, -4.5 min."""
    text = duration(seconds)
    return text if text.startswith("-") else f"+{text}"

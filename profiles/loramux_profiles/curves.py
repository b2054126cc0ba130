"""This module holds aggregate-rate curves phi(n).

phi(n) is the work done per second by n jobs together, in units of one job alone.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from loramux_profiles.datafiles import problem
from loramux_traces.errors import InvalidInputError, Problem, UsageError
from loramux_traces.files import MAX_SMALL, read_text

KNOWN: Final = "none, free, linear:SLOPE,MAX, or a CSV file with columns n,phi"
_MAX_ROWS: Final = 100_000


@dataclass(frozen=True, slots=True)
class SpeedupCurve:
    """Gives phi by the number of co-residents.

    n jobs share phi(n) equally, so each runs at phi(n)/n of its speed alone.
    """

    name: str
    points: tuple[float, ...]
    """phi(1), phi(2), ..; beyond the last it stays constant. Empty: phi(n) = n."""

    def phi(self, n: int) -> float:
        """Return the aggregate rate of n >= 1 co-residents (0 for none)."""
        if n <= 0:
            return 0.0
        if not self.points:
            return float(n)
        return self.points[min(n, len(self.points)) - 1]

    def rate(self, n: int) -> float:
        """Return the speed of each of n co-residents, in units of its speed alone."""
        return self.phi(n) / n


NONE: Final = SpeedupCurve("none", (1.0,))
FREE: Final = SpeedupCurve("free", ())


def curve_through(name: str, points: Sequence[tuple[int, float]]) -> SpeedupCurve:
    """Return the curve through (n, phi) points with increasing n, linear between them.

    It starts at phi(1) = 1 unless that point is given.
    """
    known = dict(points)
    known.setdefault(1, 1.0)
    ns = sorted(known)
    values: list[float] = []
    for low, high in zip(ns, [*ns[1:], ns[-1] + 1], strict=True):
        end = known.get(high, known[low])
        values.extend(known[low] + (end - known[low]) * (n - low) / (high - low) for n in range(low, high))
    return SpeedupCurve(name, tuple(values))


@lru_cache(maxsize=64)
def load_curve(name_or_path: str) -> SpeedupCurve:
    """Load a curve by its name or from a CSV file with columns `n,phi`.

    The names are `none` (phi = 1: processor sharing), `free` (phi = n) and `linear:a,b` (min(1 +
    a(n - 1), b)). Raises UsageError for an unknown name, InvalidInputError for a bad file.
    """
    if name_or_path == "none":
        return NONE
    if name_or_path == "free":
        return FREE
    if name_or_path.startswith("linear:"):
        return _linear(name_or_path)
    if Path(name_or_path).suffix or "/" in name_or_path:
        return _from_csv(Path(name_or_path))
    raise UsageError(f"unknown speed-up curve {name_or_path[:80]!r} (known: {KNOWN})")


def _linear(text: str) -> SpeedupCurve:
    try:
        slope, top = (float(part) for part in text.removeprefix("linear:").split(","))
    except ValueError:
        raise UsageError(f"{text!r}: give two numbers, as in linear:0.3,2.5") from None
    if not (0 <= slope <= 1 and 1 <= top <= _MAX_ROWS):
        raise UsageError(f"{text!r}: the slope must be from 0 to 1 and the maximum from 1 to {_MAX_ROWS}")
    if slope == 0:
        return SpeedupCurve(text, (1.0,))
    last = math.ceil((top - 1) / slope) + 1
    if last > 10 * _MAX_ROWS:
        raise UsageError(f"{text!r}: the slope is too small to reach the maximum")
    return SpeedupCurve(text, tuple(min(1 + slope * (n - 1), top) for n in range(1, last + 1)))


def _from_csv(path: Path) -> SpeedupCurve:
    problems: list[Problem] = []
    points: list[tuple[int, float]] = []
    try:
        with io.StringIO(read_text(path, MAX_SMALL, "a speed-up curve"), newline="") as file:
            rows = csv.reader(file)
            header = [cell.strip() for cell in next(rows, [])]
            if header != ["n", "phi"]:
                problems.append(problem(path, "", ",".join(header), "the header must be n,phi", 1))
            for row in rows:
                if not row or problems:
                    continue
                line = rows.line_num
                try:
                    n, phi = int(row[0]), float(row[1])
                except (ValueError, IndexError):
                    problems.append(problem(path, "", ",".join(row), "must be a whole number and a number", line))
                    continue
                if not 1 <= n <= _MAX_ROWS or (points and n <= points[-1][0]):
                    problems.append(problem(path, "n", n, f"must grow from row to row, from 1 to {_MAX_ROWS}", line))
                elif not (math.isfinite(phi) and 0 < phi <= n):
                    problems.append(problem(path, "phi", phi, "must be above 0 and at most n", line))
                else:
                    points.append((n, phi))
    except csv.Error as error:
        raise InvalidInputError([problem(path, "", "", f"must be a CSV file: {str(error)[:80]}")]) from error
    if not problems and not points:
        problems.append(problem(path, "", "", "must have at least one row n,phi"))
    if problems:
        raise InvalidInputError(problems[:50], total=len(problems))
    return curve_through(path.name, points)

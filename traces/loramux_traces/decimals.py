"""Work out counts from decimals as people write them, without rounding errors.

1.1 epochs of 50 rows are 55 rows; in binary floating point they are a little more, and a step that
nobody asked for.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil


def as_written(value: float) -> Fraction:
    """Return the decimal that a float was written as: 1.1 is 11/10."""
    return Fraction(value) if float(value).is_integer() else Fraction(repr(float(value)))


def steps_of_epochs(rows: int, epochs: float, batch_size: int) -> int:
    """Return the optimizer steps of `epochs` passes over the rows: at least one."""
    return max(1, ceil(rows * as_written(epochs) / batch_size))

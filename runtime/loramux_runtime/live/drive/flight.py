"""A step under way on a worker."""

from __future__ import annotations

from typing import NamedTuple

from loramux_profiles.step_point import AdapterPoint
from loramux_runtime.fused.packing import MicroBatch


class Flight(NamedTuple):
    """A step under way on a worker."""

    number: int
    began_s: float
    ends_s: float | None
    """Where the clock goes by predictions."""
    parts: tuple[tuple[AdapterPoint | None, MicroBatch], ...]
    """What it trains and on what, where it is to be held against the profile."""

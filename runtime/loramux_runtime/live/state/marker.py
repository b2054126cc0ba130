"""This module writes a few bytes that say what the scheduler is doing right now.

They outlive a killed process and tell whom to suspect. They are written before every fused step and
decision (5 us: no sync, the kernel keeps them when the process dies), and read by the supervisor
and by the next process.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

MARKER: Final = "doing"
Phase = Literal["idle", "decide", "step", "save", "stopped"]
_PHASES: Final = ("idle", "decide", "step", "save", "stopped")


@dataclass(frozen=True, slots=True)
class Doing:
    """Says what a process was doing when it was last heard of."""

    phase: Phase
    since_s: float
    """Start of the phase on the machine's monotonic clock."""
    jobs: Mapping[str, float] = field(default_factory=dict)
    """Jobs of a step, with the optimizer steps that they had done (with fractions)."""


class Marker:
    """Writes the marker of one state folder."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / MARKER, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)

    def set(self, phase: Phase, jobs: Mapping[str, float] | None = None) -> None:
        """Note what the process is doing from now on."""
        text = json.dumps([phase, time.monotonic(), jobs or {}]).encode() + b"\n"
        # the rest of a longer text before stays behind the newline
        os.pwrite(self._descriptor, text, 0)

    def close(self) -> None:
        """Close the marker's file, and leave its text as it is."""
        os.close(self._descriptor)


def read_marker(folder: Path) -> Doing | None:
    """Return what the last process was doing; None where there was none or it cannot be read."""
    try:
        first = (folder / MARKER).read_bytes().split(b"\n", 1)[0]
        phase, since_s, jobs = json.loads(first)
        if phase not in _PHASES:
            return None
        return Doing(phase, float(since_s), {str(name): float(at) for name, at in jobs.items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return None

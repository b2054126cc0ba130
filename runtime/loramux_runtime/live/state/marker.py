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

from loramux_runtime.live.state.nodes import Node
from loramux_traces.errors import StateError

MARKER: Final = "doing"
Phase = Literal["idle", "decide", "admit", "step", "save", "stopped"]
_PHASES: Final = ("idle", "decide", "admit", "step", "save", "stopped")


@dataclass(frozen=True, slots=True)
class Doing:
    """Says what a process was doing when it was last heard of."""

    phase: Phase
    since_s: float
    """Start of the phase on the machine's monotonic clock."""
    jobs: Mapping[str, float] = field(default_factory=dict)
    """Jobs of a step or of an admission, with the optimizer steps that they had done."""
    unsaved_since_s: float | None = None
    """Since when the queue could not be written, on the monotonic clock; None: it is written."""
    nodes: Mapping[str, Node] = field(default_factory=dict)
    """Device and inode of the files that the process has open."""
    mark: int | None = None
    """The mark that the file of its queue bears (`same_folder`); None where that is not known."""
    making: Mapping[str, float] = field(default_factory=dict)
    """Jobs whose states were made beside that, with the optimizer steps that they had done."""


class Marker:
    """Writes the marker of one state folder."""

    def __init__(self, folder: Path) -> None:
        self._more: dict[str, object] = {}
        self._last: tuple[Phase, Mapping[str, float]] = ("idle", {})
        self._file = folder / MARKER
        try:
            self._descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StateError(f"{self._file}: cannot be written ({error.strerror})") from error

    def set(self, phase: Phase, jobs: Mapping[str, float] | None = None) -> None:
        """Note what the process is doing from now on."""
        self._last = phase, jobs or {}
        text = json.dumps([phase, time.monotonic(), jobs or {}, self._more]).encode() + b"\n"
        # the rest of a longer text before stays behind the newline
        try:
            os.pwrite(self._descriptor, text, 0)
        except OSError as error:
            # no more than a disk without room for one page is needed for that
            raise StateError(f"{self._file}: cannot be written ({error.strerror})") from error

    def unsaved(self, unsaved: bool) -> None:
        """Note that the queue cannot be written from now on, or can be again."""
        self._more.pop("unsaved_since_s", None)
        if unsaved:
            self._more["unsaved_since_s"] = time.monotonic()
        self.set(*self._last)

    def making(self, jobs: Mapping[str, float]) -> None:
        """Note whose states are made beside whatever else the process does."""
        if jobs != self._more.get("making", {}):
            self._more["making"] = dict(jobs)
            self.set(*self._last)

    def opened(self, nodes: Mapping[str, Node], mark: int | None = None) -> None:
        """Note which files the process has open, so that a command can compare its own."""
        self._more |= {"nodes": nodes, "mark": mark}

    def close(self) -> None:
        """Close the marker's file, and leave its text as it is."""
        os.close(self._descriptor)


def read_marker(folder: Path) -> Doing | None:
    """Return what the last process was doing; None where there was none or it cannot be read."""
    try:
        first = (folder / MARKER).read_bytes().split(b"\n", 1)[0]
        # older versions wrote three values
        phase, since_s, jobs, *rest = json.loads(first)
        if phase not in _PHASES:
            return None
        more = rest[0] if rest else {}
        unsaved_s = more.get("unsaved_since_s")
        return Doing(
            phase,
            float(since_s),
            _progress(jobs),
            None if unsaved_s is None else float(unsaved_s),
            {str(name): (int(at[0]), int(at[1])) for name, at in more.get("nodes", {}).items()},
            None if more.get("mark") is None else int(more["mark"]),
            _progress(more.get("making", {})),
        )
    except (OSError, ValueError, TypeError, AttributeError, IndexError):
        return None


def _progress(jobs: Mapping[str, float]) -> dict[str, float]:
    return {str(name): float(at) for name, at in jobs.items()}

"""One device of the rate simulation, and what is said where it has too little memory."""

from __future__ import annotations

from loramux_policies.loop.meters import IDLE, Speed
from loramux_simulator.gang import GangRun
from loramux_simulator.virtual_time import Run, VirtualClock


def beyond_memory(need_bytes: float, have_bytes: float) -> str:
    """Return the text about a step that ran out of memory."""
    return f"a step needs {need_bytes:.0f} bytes, {have_bytes:.0f} available"


class RateDevice:
    """A RateDevice is one device between events."""

    __slots__ = ("bases", "clock", "device_id", "gangs", "runs", "seen_s", "speed", "timer", "type_index")

    def __init__(self, device_id: int, type_index: int) -> None:
        self.device_id = device_id
        self.type_index = type_index
        self.clock = VirtualClock()
        self.runs: dict[str, Run] = {}
        self.gangs: dict[str, GangRun] = {}
        self.speed: Speed = IDLE
        self.seen_s = -1.0
        """Time up to which everything is accounted for."""
        self.timer = 0
        """Version of the completion timer: an older one does nothing when it fires."""
        self.bases: dict[str, int] = {}
        """Number of residents of each base on the device; the last base stays warm when they are
        gone.
        """

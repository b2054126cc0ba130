"""This module tells how long ago something was, whatever the wall clock is set to.

The wall clock may be set a day forward or back. As long as the machine is not started anew, its
clock since boot, which nobody can set, says how much time has passed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@cache
def _boot_id() -> str | None:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None


def moment() -> dict[str, Any]:
    """Return the moment now in JSON types: by the wall clock, and by that since boot."""
    now: dict[str, Any] = {"unix_s": time.time()}
    boot, clock = _boot_id(), getattr(time, "CLOCK_BOOTTIME", None)
    if boot is not None and clock is not None:
        now |= {"boot": boot, "boot_s": time.clock_gettime(clock)}
    return now


def moment_of(text: str | None, unix_s: float) -> Mapping[str, Any]:
    """Return a moment that was kept as JSON; older versions kept the wall clock only."""
    return {"unix_s": unix_s} if text is None else json.loads(text)


def between_s(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> float:
    """Return the seconds from one moment to another, never negative.

    Of two boots of the machine only the wall clock knows both.
    """
    if earlier.get("boot") is not None and earlier.get("boot") == later.get("boot"):
        return max(0.0, float(later["boot_s"]) - float(earlier["boot_s"]))
    return max(0.0, float(later["unix_s"]) - float(earlier["unix_s"]))

"""This module says what the death of a scheduler's process shows about the jobs of its step.

There is no torch in here.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Final

RESTARTED: Final = "LORAMUX_RESTARTED"
"""Variable in the environment of a process that takes the place of one that died: how that died.

The command line of that process is that of the first.
"""
HUNG: Final = "hung"
CRASHED: Final = "crashed"
MEMORY: Final = "memory"
KILLED: Final = "killed"
_FROM_OUTSIDE: Final = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


class OomKills:
    """Counts the processes that the kernel has ended for want of memory, from now on."""

    def __init__(self, vmstat: Path = Path("/proc/vmstat")) -> None:
        self._vmstat = vmstat
        self._before = self._count()

    def more(self) -> bool:
        """Return whether there has been one."""
        return self._count() > self._before

    def _count(self) -> int:
        try:
            lines = self._vmstat.read_text().splitlines()
        except OSError:
            return 0
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def how_died(code: int, *, hung: bool, oom_kill: bool) -> str:
    """Return how a process died: HUNG, CRASHED, MEMORY, or KILLED from outside.

    `hung`: its supervisor has killed it; `oom_kill`: the kernel has ended some process meanwhile.
    """
    if hung:
        return HUNG
    if code not in _FROM_OUTSIDE:
        return CRASHED
    return MEMORY if code == -signal.SIGKILL and oom_kill else KILLED


def by_its_work() -> bool:
    """Return whether the process before this one died by what it was at, and not by a kill.

    A kill from outside may come anywhere and says little about the jobs of the step.
    """
    return os.environ.get(RESTARTED, KILLED) in (HUNG, CRASHED, MEMORY)

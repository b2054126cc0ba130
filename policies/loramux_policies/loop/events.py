"""This module lists what can happen to a job and what each event does to it.

It is the one table for results, books and timelines. The strings are those of events.jsonl and of
the state folder's event log, so they never change.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from loramux_traces.results import (
    CANCELLED,
    COMPLETED,
    FAILED_CRASHED,
    FAILED_DIVERGED,
    FAILED_OOM,
    REJECTED,
    UNSCHEDULABLE,
)


class Event(StrEnum):
    """An event is what the decide-apply loop tells its listener (`scheduler.Listener`)."""

    ARRIVE = "arrive"
    START = "start"
    """The job starts for the first time; later starts are `RESUME`."""
    RESUME = "resume"
    PAUSE = "pause"
    LOST = "lost"
    """The job's device is gone, and the job waits again as it was saved last."""
    OOM = "oom"
    """A step with the job ran out of memory, and the job waits again."""
    HOLD = "hold"
    """The job is out of the loop until it arrives again."""
    FINISH = "finish"
    DIVERGE = "diverge"
    """The loss of the job is not a number any more."""
    FAIL = "fail"
    """The job ran out of memory too often; it had left its device before."""
    REJECT = "reject"
    """The policy turned the job away."""
    UNSCHEDULABLE = "unschedulable"
    """The job fits no device of the run, so the loop never had it."""
    CANCEL = "cancel"
    CRASH = "crash"
    """The process that trained the job died several times in its steps."""


# The same by plain names, for what is called for every event of a million jobs: on CPython 3.11
# `Event.FINISH` takes 78 ns and a module's name 9.
ARRIVE: Final = Event.ARRIVE
START: Final = Event.START
RESUME: Final = Event.RESUME
PAUSE: Final = Event.PAUSE
LOST: Final = Event.LOST
OOM: Final = Event.OOM
FINISH: Final = Event.FINISH
FAIL: Final = Event.FAIL
REJECT: Final = Event.REJECT

FINAL_STATE: Final[dict[str, str]] = {
    Event.FINISH: COMPLETED,
    Event.FAIL: FAILED_OOM,
    Event.UNSCHEDULABLE: UNSCHEDULABLE,
    Event.REJECT: REJECTED,
    Event.DIVERGE: FAILED_DIVERGED,
    Event.CANCEL: CANCELLED,
    Event.CRASH: FAILED_CRASHED,
}
"""Event -> the final state of the job that it ends; the other events end no job."""

BEGINS: Final[frozenset[str]] = frozenset((Event.START, Event.RESUME))
"""Events with which a stay on devices begins."""
LEAVES: Final[frozenset[str]] = frozenset(
    (Event.PAUSE, Event.LOST, Event.OOM, Event.HOLD, Event.FINISH, Event.DIVERGE, Event.CANCEL, Event.CRASH)
)
"""Events that end the stay of a job that is on devices."""

"""What can happen to a job, and what each event does to it: the one table for results, books and timelines.

The strings are those of events.jsonl and of the state folder's event log, so they never change.
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
    """What the decide-apply loop tells its listener (`scheduler.Listener`)."""

    ARRIVE = "arrive"
    START = "start"
    """For the first time; `RESUME` from then on."""
    RESUME = "resume"
    SHARE = "share"
    PAUSE = "pause"
    LOST = "lost"
    """Its device is gone, and it waits again as it was saved last."""
    OOM = "oom"
    """A step with it ran out of memory, and it waits again."""
    HOLD = "hold"
    """Out of the loop until it arrives again."""
    FINISH = "finish"
    DIVERGE = "diverge"
    """Its loss is not a number any more."""
    FAIL = "fail"
    """Out of memory too often, after it had left its device."""
    REJECT = "reject"
    """Turned away by the policy."""
    UNSCHEDULABLE = "unschedulable"
    """It fits no device of the run, so that the loop never had it."""
    CANCEL = "cancel"
    CRASH = "crash"
    """The process that trained it died several times in its steps."""


FINAL_STATE: Final[dict[str, str]] = {
    Event.FINISH: COMPLETED,
    Event.FAIL: FAILED_OOM,
    Event.UNSCHEDULABLE: UNSCHEDULABLE,
    Event.REJECT: REJECTED,
    Event.DIVERGE: FAILED_DIVERGED,
    Event.CANCEL: CANCELLED,
    Event.CRASH: FAILED_CRASHED,
}
"""Event -> the final state of the job that it ends; the others end no job."""

BEGINS: Final[frozenset[str]] = frozenset((Event.START, Event.RESUME))
"""Events with which a stay on devices begins."""
LEAVES: Final[frozenset[str]] = frozenset(
    (Event.PAUSE, Event.LOST, Event.OOM, Event.HOLD, Event.FINISH, Event.DIVERGE, Event.CANCEL, Event.CRASH)
)
"""Events that end the stay of a job that is on devices."""

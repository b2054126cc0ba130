"""This module is the one hook through which tests inject faults.

The code under test is never edited.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from loramux_policies.stepping.stream import Stream

Fault = Callable[[str, dict[str, object]], None]
"""Called at a named point with facts about it; may raise what a real fault would raise."""


class FaultPlan:
    """Holds faults by the point that they happen at.

    Points: `step` (job_ids, rows), before it runs; `admit` and `restore` (job_id), before a job is
    taken in, and before its state is made or read; `commit` (stage: "before", "after") of the live
    scheduler's progress; `checkpoint` (stage, job_id), when a stage of a save is over: "begin",
    "tensors", "state", "manifest", "synced", "aside" (only where one at the same position is
    replaced), "renamed", "pruned".
    """

    def __init__(self, **faults: Fault) -> None:
        self._faults = faults

    def reach(self, point: str, **facts: object) -> None:
        """Give the fault planned for this point its chance."""
        fault = self._faults.get(point)
        if fault is not None:
            fault(point, facts)


NONE = FaultPlan()


def recorded_faults(stream: Stream, then: FaultPlan = NONE) -> FaultPlan:
    """Make faults that run out of memory in the steps in which the recorded run did.

    `then` gets its chance in every step before that is known.
    """
    failed = iter([moment.out_of_memory for moment in stream.moments if moment.began_s is not None])

    def step(point: str, facts: dict[str, object]) -> None:
        then.reach(point, **facts)
        if next(failed, False):
            raise torch.OutOfMemoryError("recorded")

    return FaultPlan(step=step)

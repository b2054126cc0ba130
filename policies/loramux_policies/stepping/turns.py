"""This module keeps the residents of one device by base model.

Bases take turns, one a step, each with the residents that are in it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, Protocol, TypeVar

from loramux_policies.loop.job import Job
from loramux_policies.views import Entry, FusedStep, ReadyJob
from loramux_profiles.work import BaseCost, JobCost


class StepRun(ReadyJob, Protocol):
    """Describes a resident as its device keeps it.

    It has what policies see of the resident (`views.ReadyJob`), and what a step does to it.
    """

    waited: int
    job: Job

    @property
    def cost(self) -> JobCost: ...
    @property
    def squares(self) -> int:
        """Sum of the squared row lengths of its next micro-batch."""

    def advance(self, rows: int) -> None:
        """Note that `rows` of its micro-batch were trained on."""


R = TypeVar("R", bound=StepRun)


def place(run: StepRun) -> tuple[int, float, str]:
    return (-run.priority, run.submit_s, run.job_id)


class BaseTurn(Generic[R]):
    """Holds the residents of one base model on one device.

    They are in the order (priority descending, submission, id).
    """

    __slots__ = ("_everyone", "base", "mixed", "runs")

    def __init__(self, base: BaseCost) -> None:
        self.base = base
        self.runs: list[R] = []
        self.mixed = False
        """Whether some jobs are charged their mem_bytes and others by the model.

        The model does not foresee that the former pad the latter.
        """
        self._everyone: FusedStep | None = None

    def add(self, run: R) -> None:
        self.runs.append(run)
        self.runs.sort(key=place)
        self._changed()

    def remove(self, run: R) -> None:
        self.runs.remove(run)
        self._changed()

    def only(self, members: Collection[str]) -> BaseTurn[R]:
        """Return the same turn without the jobs whose shares leave them out of this step."""
        turn: BaseTurn[R] = BaseTurn(self.base)
        turn.runs = [run for run in self.runs if run.job_id in members]
        turn._changed()
        return turn

    def _changed(self) -> None:
        self.mixed = len({run.cost.overridden for run in self.runs}) > 1
        self._everyone = None

    def everyone(self) -> FusedStep:
        """Return a step of all of them, whole; it is made once per set of residents."""
        if self._everyone is None:
            self._everyone = FusedStep(self.base.key, tuple(Entry(r.job_id, r.cost.rows) for r in self.runs))
        return self._everyone

"""This module keeps a resident with real rows, as policies and the device's books see it.

The resident trains now, or it goes on as it was recorded.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from loramux_policies.loop.job import Job
from loramux_profiles.work import JobCost


class DataCursor(Protocol):
    """Says where a job is in its data; it is kept while the job is paused."""

    @property
    def rows_done(self) -> int:
        """Rows of the optimizer step in progress that have been trained on."""

    @property
    def progress_steps(self) -> float:
        """Optimizer steps done; the one in progress counts by its rows."""

    @property
    def p_stop(self) -> float:
        """Predicted probability that the job stops early soon."""

    def lengths(self, rows: int) -> tuple[int, ...]:
        """Return the tokens of each of the next rows, up to the end of the step in progress."""

    def rewind(self) -> None:
        """Go back to the first row of the step in progress."""


P = TypeVar("P", bound=DataCursor)


class LiveRun(Generic[P]):
    """Holds a job's stay on a device (contract: `fuse_view.StepRun`).

    Its next micro-batch has real lengths.
    """

    __slots__ = ("_lengths", "cost", "job", "job_id", "priority", "submit_s", "training", "waited")

    def __init__(self, job: Job, cost: JobCost, training: P) -> None:
        self.job = job
        self.job_id = job.job_id
        self.submit_s = job.spec.submit_s
        self.priority = job.spec.priority
        self.cost = cost
        self.training = training
        self.waited = 0
        self._lengths: tuple[int, ...] | None = None

    @property
    def rows(self) -> int:
        """Rows of its next micro-batch: what is left of `cost.rows`, or of the optimizer step."""
        return len(self.lengths)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Row lengths of its next micro-batch."""
        if self._lengths is None:
            self._lengths = self.training.lengths(self.cost.rows - self.training.rows_done % self.cost.rows)
        return self._lengths

    @property
    def longest(self) -> int:
        """Longest row of its next micro-batch, tokens."""
        return max(self.lengths)

    @property
    def tokens(self) -> int:
        """Tokens of its next micro-batch."""
        return sum(self.lengths)

    @property
    def squares(self) -> int:
        """Sum of the squared row lengths of its next micro-batch."""
        return sum(n * n for n in self.lengths)

    @property
    def p_stop(self) -> float:
        """Early-stop prediction of the job's own losses."""
        return self.training.p_stop

    def advance(self, rows: int) -> None:
        """Note that the training job has moved on, and with it what is next."""
        self.waited = 0
        self._lengths = None

    def rewind(self) -> None:
        """Go back to the first row of the step in progress, of which nothing counts."""
        self.training.rewind()
        self.advance(0)

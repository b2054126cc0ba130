"""Draw the real lengths of a job's micro-batches, in blocks.

The job is kept here as a fused step sees it.
"""

from __future__ import annotations

from math import ceil
from typing import Final

import numpy as np

from loramux_policies.loop.job import Job
from loramux_profiles.row_lengths import BLOCK, PURPOSE, draw_block
from loramux_profiles.streams import generator
from loramux_profiles.work import JobCost
from loramux_traces.arrays import Floats, Ints

PREDICTION_POINTS: Final = 20
"""Loss points before early-stop prediction says anything (as in mLoRA)."""


def _epoch_micro(job: Job, cost: JobCost) -> int:
    """Return the micro-batches of one epoch.

    Where the trace does not say how many rows the job has, they are those of the whole job.
    """
    rows = job.spec.num_samples
    return max(1, ceil(job.true_steps * cost.accumulation if rows is None else rows / cost.rows))


class ReadyRun:
    """A ReadyRun is a resident in step fidelity: its next micro-batch and how long it has waited.

    The contract is `fused_device.StepRun`. `stop_steps`: where early-stop prediction expects the
    end of the job, in optimizer steps (None: it expects nothing).
    """

    __slots__ = (
        "_block",
        "_blocks",
        "_epoch_micro",
        "_longest",
        "_offset",
        "_position",
        "_rows",
        "_seed",
        "_squares",
        "_tokens",
        "cost",
        "done_micro",
        "job",
        "job_id",
        "longest",
        "priority",
        "rows",
        "squares",
        "stop_micro",
        "submit_s",
        "target_micro",
        "tokens",
        "tokens_done",
        "waited",
    )

    def __init__(
        self, job: Job, cost: JobCost, seed: int, *, sorted_rows: bool = False, stop_steps: float | None = None
    ) -> None:
        self.job = job
        self.job_id = job.job_id
        self.submit_s = job.spec.submit_s
        self.priority = job.spec.priority
        self.cost = cost
        self.waited = 0
        self.done_micro = job.done_steps * cost.accumulation
        self.target_micro = job.true_steps * cost.accumulation
        self.stop_micro = None if stop_steps is None else stop_steps * cost.accumulation
        self.tokens_done = 0.0
        """Tokens that are not yet credited to the job."""
        self._epoch_micro = _epoch_micro(job, cost) if sorted_rows else 0
        self._seed = seed
        # The data cursor is kept over a pause. It is exact to the row, because a halved micro-batch
        # may be left in its middle.
        whole, self._offset = divmod(round(self.done_micro * cost.rows), cost.rows)
        self._blocks = whole // BLOCK
        self._draw()
        self._position = whole % BLOCK
        self._load()

    def _draw(self) -> None:
        cost = self.cost
        if self._epoch_micro:
            rng = generator(self._seed, self.job_id, PURPOSE, self._blocks)
            self._block = self._longest_first(rng.random((BLOCK, cost.rows)))
        else:
            self._block = draw_block(self._seed, self.job_id, cost.lengths, cost.rows, self._blocks)
        self._blocks += 1
        self._longest: list[int] = self._block.max(axis=1).tolist()
        self._tokens: list[int] = self._block.sum(axis=1).tolist()
        self._squares: list[int] = np.square(self._block).sum(axis=1).tolist()
        self._position = 0
        self._rows: list[tuple[int, ...]] | None = None

    def _longest_first(self, draws: Floats) -> Ints:
        """Return the block's rows of epochs that are sorted by length.

        Row i of n comes from the i-th n-quantile class, descending.
        """
        rows = self.cost.rows
        micro = (self._blocks * BLOCK + np.arange(BLOCK)) % self._epoch_micro
        place = micro[:, None] * rows + np.arange(rows)
        return self.cost.lengths.quantile(1.0 - (place + draws) / (self._epoch_micro * rows))

    def _load(self) -> None:
        if self._offset:
            self._load_rest()
            return
        position = self._position
        self.rows = self.cost.rows
        self.longest = self._longest[position]
        self.tokens = self._tokens[position]
        self.squares = self._squares[position]

    def _load_rest(self) -> None:
        rest = self.lengths
        self.rows = len(rest)
        self.longest, self.tokens, self.squares = max(rest), sum(rest), sum(n * n for n in rest)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Row lengths of its next micro-batch (of what is left of it, after a halved one)."""
        if self._rows is None:  # only policies that look at lengths pay for this list
            self._rows = [tuple(row) for row in self._block.tolist()]
        row = self._rows[self._position]
        return row[self._offset :] if self._offset else row

    @property
    def p_stop(self) -> float:
        """Modelled probability that the job stops.

        A job looks likelier to stop, the nearer it is to its predicted end. It is 0 before 20
        optimizer steps.
        """
        if self.stop_micro is None or self.done_micro < PREDICTION_POINTS * self.cost.accumulation:
            return 0.0
        return min(1.0, self.done_micro / self.stop_micro) ** 4

    def advance(self, rows: int) -> None:
        """Count `rows` of its micro-batch as trained on."""
        self.waited = 0
        self.tokens_done += self.tokens if rows == self.rows else sum(self.lengths[:rows])
        self.done_micro += rows / self.cost.rows
        if rows < self.rows:
            self._offset += rows
            self._load_rest()
            return
        self._offset = 0
        self._position += 1
        if self._position == BLOCK:
            self._draw()
        self._load()

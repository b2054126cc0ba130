"""A job's training state: where it is in its data, its optimizer, and what it has learned. No device, no clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np

from loramux_runtime.adapter import Adapter
from loramux_runtime.data import Rows, SampleStream, TokenisedRows
from loramux_runtime.early_stop import Patience, stop_likelihood
from loramux_runtime.jobs_file import TrainJob
from loramux_runtime.model import FusedModel, JobOutcome
from loramux_runtime.optim import JobOptimizer
from loramux_runtime.packing import IGNORED, MicroBatch

MOST_SKIPPED: Final = 3
"""Optimizer steps in a row with a loss or gradient that is not finite, before a job has diverged."""
PREDICT_EVERY: Final = 20
EVAL_TOKENS: Final = 4096
"""Tokens of held-out rows in one evaluation pass."""

Log = Callable[[dict[str, Any]], None]


class Evaluation(NamedTuple):
    """Held-out rows."""

    loss: float
    """Mean cross entropy per learned token."""
    token_accuracy: float
    """Share of learned tokens that were the likeliest."""
    exact_match: float
    """Share of rows whose every learned token was: what greedy decoding answers exactly."""


class TrainingJob:
    """One job from its first to its last optimizer step.

    Step s trains on samples [s * batch_size, (s + 1) * batch_size) of the stream, in as many micro-batches as the
    scheduler makes of them; the loss is divided by the labels of the whole step, so the split changes no gradient but
    that of auxiliary losses (f * P is not linear).
    """

    def __init__(
        self,
        config: TrainJob,
        adapter: Adapter,
        rows: Rows,
        stream: SampleStream,
        eval_rows: TokenisedRows | None = None,
        *,
        log: Log | None = None,
    ) -> None:
        self.config = config
        self.adapter = adapter
        self._rows, self._stream, self._eval_rows = rows, stream, eval_rows
        self.total_steps = config.steps or max(1, math.ceil(len(rows) * (config.epochs or 0) / config.batch_size))
        self.optimizer = JobOptimizer(adapter.slab, config.optimizer, config.schedule, self.total_steps)
        self.step = 0
        """Optimizer steps done."""
        self.rows_done = 0
        """Rows of the step in progress that are trained on."""
        self.tokens = 0
        self.stopped = False
        """Ended before its declared steps by its own patience."""
        self.diverged = ""
        """Why, once it has."""
        self.first_evaluation: Evaluation | None = None
        self.evaluation: Evaluation | None = None
        """Of the held-out rows: the first one and the latest."""
        self._patience = Patience(config.evaluation.patience, config.evaluation.min_improvement)
        self._log = log
        self._window: tuple[int, int, int] = (-1, 0, 0)
        self._loss = self._aux = 0.0
        self._active: list[tuple[float, int]] = []
        self._skipped = 0
        self._losses: list[float] = []
        self._likelihood = (-1, 0.0)

    def begin(self, model: FusedModel) -> None:
        """The job is on its device for the first time: score the held-out rows before anything is learned."""
        if self.step == 0 and self.rows_done == 0 and self._eval_rows is not None and self.evaluation is None:
            self.evaluate(model)

    # -- data

    def peek(self, rows: int) -> MicroBatch:
        """The next `rows` rows of the step in progress (fewer where fewer are left of it)."""
        first = self.step * self.config.batch_size + self.rows_done
        count = min(rows, self.rows_left)
        samples = tuple(range(first, first + count))
        found = [self._rows[self._stream.row(sample)] for sample in samples]
        window_labels, window_tokens = self._window_totals()
        batch = MicroBatch(
            tokens=tuple(tokens for tokens, _ in found),
            labels=tuple(labels for _, labels in found),
            samples=samples,
            step=self.step,
            window_labels=window_labels,
        )
        if batch.n_tokens == window_tokens:
            return batch
        return replace(batch, window_share=batch.n_tokens / window_tokens)

    def lengths(self, rows: int) -> tuple[int, ...]:
        """Tokens of each of the next rows."""
        first = self.step * self.config.batch_size + self.rows_done
        return tuple(self._rows.length(row) for row in self._stream.rows(first, min(rows, self.rows_left)))

    @property
    def rows_left(self) -> int:
        """Rows of the step in progress that are still to come."""
        return self.config.batch_size - self.rows_done

    @property
    def progress_steps(self) -> float:
        """Optimizer steps done, the one in progress counted by its rows."""
        return self.step + self.rows_done / self.config.batch_size

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.step >= self.total_steps or self.stopped

    def _window_totals(self) -> tuple[int, int]:
        if self._window[0] != self.step:
            first = self.step * self.config.batch_size
            rows = [self._rows[row] for row in self._stream.rows(first, self.config.batch_size)]
            labels = sum(int(np.count_nonzero(labels[1:] != IGNORED)) for _, labels in rows)
            self._window = (self.step, labels, sum(len(tokens) for tokens, _ in rows))
        return self._window[1], self._window[2]

    # -- training

    def commit(self, batch: MicroBatch, outcome: JobOutcome, model: FusedModel) -> None:
        """A fused step with this micro-batch has run: move on, and take the optimizer step where it was the last."""
        self._loss += outcome.loss
        self._aux += outcome.aux_loss
        self.tokens += outcome.n_tokens
        if outcome.active_experts is not None:
            self._active.append((outcome.active_experts, outcome.n_tokens))
        self.rows_done += len(batch.tokens)
        if self.rows_left == 0:
            self._apply(model)

    def rewind(self) -> None:
        """Forget the step in progress: it will be trained again from its first row, with the same bits."""
        self.rows_done = 0
        self._loss = self._aux = 0.0
        self._active.clear()
        self.adapter.slab.grads.zero_()

    def _apply(self, model: FusedModel) -> None:
        norm = self.optimizer.grad_norm()
        limit = self.config.max_grad_norm
        finite = math.isfinite(norm) and math.isfinite(self._loss) and math.isfinite(self._aux)
        lr = self.optimizer.lr(self.step)
        if finite:
            self._skipped = 0
            self.optimizer.step(self.step, limit / (norm + 1e-6) if limit is not None and norm > limit else 1.0)
            self._losses.append(self._loss)
        else:
            self._skipped += 1
            self.adapter.slab.grads.zero_()
            if self._skipped >= MOST_SKIPPED:
                self.diverged = f"loss or gradient not finite in {self._skipped} steps in a row (step {self.step})"
        self.step += 1
        record: dict[str, Any] = {
            "step": self.step,
            "total_steps": self.total_steps,
            "loss": self._loss if math.isfinite(self._loss) else None,
            "aux_loss": self._aux if math.isfinite(self._aux) else None,
            "grad_norm": norm if math.isfinite(norm) else None,
            "lr": lr,
            "tokens": self.tokens,
            "skipped": not finite,
        }
        if self._active:
            total = sum(n for _, n in self._active)
            record["active_experts"] = sum(value * n for value, n in self._active) / total
        self._loss = self._aux = 0.0
        self._active.clear()
        self.rows_done = 0
        every = self.config.evaluation.every_steps
        if self._eval_rows is not None and not self.diverged:
            if every is not None and self.step % every == 0:
                self.stopped = self._patience.see(self.evaluate(model).loss)
            elif self.step == self.total_steps:
                self.evaluate(model)
            if self.evaluation is not None:
                record |= {f"eval_{name}": value for name, value in self.evaluation._asdict().items()}
        if self._log is not None:
            self._log(record)

    def evaluate(self, model: FusedModel) -> Evaluation:
        """Score the held-out rows."""
        rows = self._eval_rows
        assert rows is not None
        total = 0.0
        right = exact = start = 0
        while start < len(rows):
            end = start + 1
            while end < len(rows) and rows.starts[end + 1] - rows.starts[start] <= EVAL_TOKENS:
                end += 1
            found = [rows[row] for row in range(start, end)]
            batch = MicroBatch(
                tokens=tuple(tokens for tokens, _ in found),
                labels=tuple(labels for _, labels in found),
                samples=tuple(range(start, end)),
                window_labels=rows.n_labels,
            )
            score = model.score(self.adapter, batch)
            total, right, exact = total + score.loss, right + score.right, exact + score.rows_right
            start = end
        self.evaluation = Evaluation(total, right / max(1, rows.n_labels), exact / len(rows))
        if self.first_evaluation is None:
            self.first_evaluation = self.evaluation
        return self.evaluation

    @property
    def p_stop(self) -> float:
        """How likely its patience ends it soon (0 without patience); fitted again every 20 steps."""
        evaluation = self.config.evaluation
        if evaluation.patience is None or evaluation.every_steps is None:
            return 0.0
        epoch = len(self._losses) // PREDICT_EVERY
        if self._likelihood[0] != epoch:
            ahead = evaluation.patience * evaluation.every_steps
            # of whole epochs only: what a policy is told does not depend on when anybody asked first
            seen = self._losses[: epoch * PREDICT_EVERY][-500:]
            self._likelihood = (epoch, stop_likelihood(seen, ahead, evaluation.min_improvement))
        return self._likelihood[1]

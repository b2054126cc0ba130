"""A training job knows where it is in its data, its optimizer, and what it has learned.

It knows no device and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from loramux_runtime.data import JobData, Rows, SampleStream, TokenisedRows
from loramux_runtime.fused.adapters.base import Adapter
from loramux_runtime.fused.labels import IGNORED
from loramux_runtime.fused.model import FusedModel, JobOutcome
from loramux_runtime.fused.packing import MicroBatch
from loramux_runtime.jobs.early_stop import LossTail, Patience, stop_likelihood
from loramux_runtime.jobs.evaluation import Evaluation, NoMemoryError, evaluate
from loramux_runtime.jobs.job_data import total_steps
from loramux_runtime.jobs.jobs_file import TrainJob
from loramux_runtime.jobs.optim import JobOptimizer
from loramux_runtime.jobs.training_state import (
    OPTIMIZER,
    VERSION,
    SavedPosition,
    check_identity,
    check_tensors,
    identity,
    read_position,
)
from loramux_traces.errors import StateError

MOST_SKIPPED: Final = 3
"""A job has diverged after so many steps in a row whose loss or gradient is not finite."""

Log = Callable[[dict[str, Any]], None]


class TrainingJob:
    """A training job runs from its first to its last optimizer step.

    Step s trains on samples [s * batch_size, (s + 1) * batch_size) of the stream, in as many
    micro-batches as the scheduler makes of them. The loss is divided by the labels of the whole
    step, so the split changes no gradient but that of auxiliary losses (f * P is not linear).
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
        self.total_steps = total_steps(config, len(rows))
        self.optimizer = JobOptimizer(adapter.slab, config.optimizer, config.schedule, self.total_steps)
        self.step = 0
        """Optimizer steps done."""
        self.rows_done = 0
        """Rows of the step in progress that have been trained on."""
        self.tokens = 0
        self.stopped = False
        """Whether its own patience ended it before its declared steps."""
        self.diverged = ""
        """Why the job diverged; empty while it has not."""
        self.out_of_memory = ""
        """Why its held-out rows cannot be scored, which ends it; empty while they can."""
        self.first_evaluation: Evaluation | None = None
        self.evaluation: Evaluation | None = None
        """The latest score of the held-out rows; `first_evaluation` is their first one."""
        self._patience = Patience(config.evaluation.patience, config.evaluation.min_improvement)
        self._log = log
        self._window: tuple[int, int, int] = (-1, 0, 0)
        self._identity: dict[str, Any] | None = None
        self._loss = self._aux = self._active = 0.0
        self._active_tokens = 0
        self._skipped = 0
        self._losses = LossTail()
        self._likelihood = (-1, 0.0)

    @classmethod
    def new(cls, model: FusedModel, config: TrainJob, data: JobData, *, log: Log | None = None) -> TrainingJob:
        """Return a new job that stands at its first step.

        The adapter waits on the host until its job starts.
        """
        adapter = model.new_adapter(config.id, config.method, config.adapter_config, seed=config.seed, device="cpu")
        return cls(config, adapter, data.train, data.stream, data.eval, log=log)

    def begin(self, model: FusedModel, give_up: Callable[[], bool] = lambda: False) -> None:
        """Score the held-out rows before anything is learned.

        The job is on its device for the first time. Nothing is kept where `give_up` says that the
        run is to end.
        """
        if self.step == 0 and self.rows_done == 0 and self._eval_rows is not None and self.evaluation is None:
            self.evaluate(model, give_up)

    # -- data

    def peek(self, rows: int) -> MicroBatch:
        """Return the next `rows` rows of the step in progress, or those that are left of it."""
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
        """Return the number of tokens of each of the next rows."""
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
        """Move on after a fused step with this micro-batch has run.

        The optimizer step is taken where the micro-batch was the last of it.
        """
        self._loss += outcome.loss
        self._aux += outcome.aux_loss
        self.tokens += outcome.n_tokens
        if outcome.active_experts is not None:
            self._active += outcome.active_experts * outcome.n_tokens
            self._active_tokens += outcome.n_tokens
        self.rows_done += len(batch.tokens)
        if self.rows_left == 0:
            self._apply(model)

    def rewind(self) -> None:
        """Forget the step in progress.

        It will be trained again from its first row, with the same bits.
        """
        self._uncount()
        self._next_window()
        self.adapter.slab.grads.zero_()

    def _uncount(self) -> None:
        """Take back the tokens of the step in progress, which will be counted again."""
        first = self.step * self.config.batch_size
        self.tokens -= sum(self._rows.length(row) for row in self._stream.rows(first, self.rows_done))

    def _next_window(self) -> None:
        self.rows_done = self._active_tokens = 0
        self._loss = self._aux = self._active = 0.0

    def _apply(self, model: FusedModel) -> None:
        norm = self.optimizer.grad_norm()
        limit = self.config.max_grad_norm
        finite = math.isfinite(norm) and math.isfinite(self._loss) and math.isfinite(self._aux)
        lr = self.optimizer.lr(self.step)
        if finite:
            self._skipped = 0
            self.optimizer.step(self.step, limit / (norm + 1e-6) if limit is not None and norm > limit else 1.0)
            self._losses.add(self._loss)
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
        if self._active_tokens:
            record["active_experts"] = self._active / self._active_tokens
        self._next_window()
        every = self.config.evaluation.every_steps
        if self._eval_rows is not None and not self.diverged:
            if every is not None and self.step % every == 0:
                score = self.evaluate(model)
                self.stopped = score is not None and self._patience.see(score.loss)
            elif self.step == self.total_steps:
                self.evaluate(model)
            if self.evaluation is not None:
                record |= {f"eval_{name}": value for name, value in self.evaluation._asdict().items()}
        if self._log is not None:
            self._log(record)

    def evaluate(self, model: FusedModel, give_up: Callable[[], bool] = lambda: False) -> Evaluation | None:
        """Score the held-out rows and keep the result.

        None where `give_up` said so, and where memory ran out, which ends the job.
        """
        assert self._eval_rows is not None
        try:
            found = evaluate(model, self.adapter, self._eval_rows, give_up)
        except NoMemoryError as error:
            self.out_of_memory = str(error)
            return None
        if found is not None:
            self.evaluation = found
            if self.first_evaluation is None:
                self.first_evaluation = found
        return found

    @property
    def p_stop(self) -> float:
        """How likely it is that the job's patience ends it soon; 0 without patience.

        It is fitted again every 20 steps.
        """
        evaluation = self.config.evaluation
        if evaluation.patience is None or evaluation.every_steps is None:
            return 0.0
        if self._likelihood[0] != self._losses.epoch:
            ahead = evaluation.patience * evaluation.every_steps
            likelihood = stop_likelihood(self._losses.fitted(), ahead, evaluation.min_improvement)
            self._likelihood = (self._losses.epoch, likelihood)
        return self._likelihood[1]

    # -- checkpoints

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that training needs to go on bit-equal from here, between any two fused steps.

        These are tensors (the job's own, not copies, wherever they are: use them before the next
        step) and facts for JSON.
        """
        slab = self.adapter.slab
        tensors = {"params": slab.params, "losses": torch.tensor(list(self._losses.last), dtype=torch.float64)}
        tensors |= {OPTIMIZER + name: value for name, value in self.optimizer.state().items()}
        if self.rows_done:
            tensors["grads"] = slab.grads
        progress = SavedPosition(
            step=self.step,
            rows_done=self.rows_done,
            tokens=self.tokens,
            stopped=self.stopped,
            diverged=self.diverged,
            skipped=self._skipped,
            loss=self._loss,
            aux=self._aux,
            active=self._active,
            active_tokens=self._active_tokens,
            first_evaluation=self.first_evaluation,
            evaluation=self.evaluation,
            best=self._patience.best,
            bad=self._patience.bad,
            losses_seen=self._losses.seen,
        )
        return tensors, {"version": VERSION, "identity": self._own_identity(), "progress": progress.model_dump()}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take up what `state` gave; the tensors are copied to where the job's own are.

        Raises StateError, with nothing changed, where it is of another job (it says what differs)
        or not whole.
        """
        check_identity(self._own_identity(), facts.get("identity"))
        found, slab = read_position(facts), self.adapter.slab
        if found.step > self.total_steps or found.rows_done >= self.config.batch_size:
            raise StateError(f"its position (step {found.step}, row {found.rows_done}) lies outside the job")
        check_tensors(tensors, slab.params, self.config.optimizer.name, found)
        slab.params.copy_(tensors["params"])
        slab.version += 1
        if found.rows_done:
            slab.grads.copy_(tensors["grads"])
        else:
            slab.grads.zero_()
        moments = {name.removeprefix(OPTIMIZER): t for name, t in tensors.items() if name.startswith(OPTIMIZER)}
        self.optimizer.load_state(moments)
        self.step, self.rows_done, self.tokens = found.step, found.rows_done, found.tokens
        self.stopped, self.diverged, self._skipped = found.stopped, found.diverged, found.skipped
        self._loss, self._aux = found.loss, found.aux
        self._active, self._active_tokens = found.active, found.active_tokens
        first, latest = found.first_evaluation, found.evaluation
        self.first_evaluation = None if first is None else Evaluation(*first)
        self.evaluation = None if latest is None else Evaluation(*latest)
        self._patience.best, self._patience.bad = found.best, found.bad
        self._losses = LossTail(found.losses_seen, tensors["losses"].tolist())
        self._likelihood = (-1, 0.0)

    def _own_identity(self) -> dict[str, Any]:
        if self._identity is None:  # once per job is enough, because it hashes the rows
            self._identity = identity(
                self.config, self.adapter, self.total_steps, self._rows, self._stream, self._eval_rows
            )
        return self._identity

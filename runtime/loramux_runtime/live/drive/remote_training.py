"""This module is the scheduler's side of a training job whose tensors are on a worker.

It knows where the job is, and its state when last fetched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from loramux_runtime.fused.adapters.base import Adapter
from loramux_runtime.fused.adapters.methods import METHODS
from loramux_runtime.fused.base_model import BaseModel
from loramux_runtime.jobs.preparation import PreparedJob
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.drive.worker import JobOrder, JobReport, State, to_arrays, to_tensors
from loramux_traces.errors import StateError


class RemoteTraining(TrainingJob):
    """Stands for a training job that is on a worker.

    `base` needs no weights: the values that an adapter begins with are made on the worker. What the
    scheduler asks of a training job (position, row lengths, checkpoints, its adapter's file) this
    object answers itself.
    """

    def __init__(self, prepared: PreparedJob, base: BaseModel, log: Callable[[dict[str, Any]], None]) -> None:
        config, data = prepared.config, prepared.data
        adapter = Adapter(
            config.id,
            METHODS[config.method],
            config.adapter_config,
            base.sites,
            seed=config.seed,
            device="cpu",
            dtype=torch.float64 if base.dtype == torch.float64 else torch.float32,
        )
        super().__init__(config, adapter, data.train, data.stream, data.eval, log=log)
        self._data = data
        self.untouched = True
        """Whether the job has never been on a worker: there is no state but the seed."""
        self.whole = False
        """Whether the tensors here are those of the job's position."""
        self._told_p_stop = 0.0

    def order(self) -> JobOrder:
        """Return the job in the form that is sent to a worker."""
        state = None if self.untouched else to_arrays(self.state())
        return JobOrder(config=self.config.model_dump(mode="json"), data=self._data, state=state)

    def follow(self, report: JobReport) -> None:
        """Take in the report of a step that has run on the worker."""
        self.untouched = self.whole = False
        self.step, self.rows_done, self.tokens = report.step, report.rows_done, report.tokens
        self.stopped, self.diverged = report.stopped, report.diverged
        self.out_of_memory = report.out_of_memory
        self._told_p_stop = report.p_stop
        if report.state is not None:
            self.take(report.state)
        if self._log is not None:
            for record in report.records:
                self._log(record)

    def take(self, state: State) -> None:
        """Take in the state that the worker has sent; StateError where it is not this job's."""
        self.restore(*to_tensors(state))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state at the job's position; StateError where that has not been fetched."""
        if not self.whole:
            raise StateError(f"the state of {self.config.id} is on its worker")
        return super().state()

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take up a checkpoint, or what a worker has sent."""
        super().restore(tensors, facts)
        self.untouched, self.whole = False, True
        self._told_p_stop = super().p_stop

    def rewind(self) -> None:
        """Go back to the first row of the step in progress, as the worker has done already."""
        self.untouched = self.whole = False
        self._uncount()
        self.rows_done = 0

    @property
    def p_stop(self) -> float:
        """Probability of an early stop, as the worker last said."""
        return self._told_p_stop

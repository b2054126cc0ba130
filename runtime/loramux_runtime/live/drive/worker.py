"""This module runs one device of several, and decides nothing.

It holds jobs and trains them as it is told. There is no Ray in here.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from loramux_policies.errors import let_through
from loramux_policies.stepping.contracts import Arrival
from loramux_runtime.data import JobData
from loramux_runtime.fused.base_model import BaseModel
from loramux_runtime.fused.memory_meter import MemoryMeter
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import Part
from loramux_runtime.fused.torch_devices import card_name
from loramux_runtime.jobs.jobs_file import TrainJob
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.drive.makers import without
from loramux_runtime.train.executor import try_step
from loramux_runtime.train.faults import NONE, FaultPlan

State = tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]
"""The result of `TrainingJob.state`, with its tensors as arrays on the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOrder:
    """Holds a job as it is sent to a device."""

    config: Mapping[str, Any]
    """Fields of `TrainJob`, as JSON."""
    data: JobData
    state: State | None
    """State that the job goes on from; None: it begins at its first step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """Says where a job is after a step."""

    step: int
    rows_done: int
    tokens: int
    stopped: bool
    diverged: str
    out_of_memory: str
    p_stop: float
    records: Sequence[dict[str, Any]]
    """What the job has learned, as one record per optimizer step."""
    state: State | None
    """State of a job that has finished: nothing of it can be lost any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """Says how a fused step went."""

    seconds: float
    """Seconds of the step on the device's own clock."""
    out_of_memory: bool
    jobs: Mapping[str, JobReport] = field(default_factory=dict)
    """Report of each job; empty where the step ran out of memory."""
    tokens: int = 0
    dynamic_bytes: float | None = None
    peak_bytes: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """Holds what a worker says of itself."""

    device: str
    node: str
    pid: int


class _Made(NamedTuple):
    """Holds a job that has been made, and the list that its training records go to."""

    training: TrainingJob
    records: list[dict[str, Any]]


def to_arrays(state: tuple[Mapping[str, torch.Tensor], dict[str, Any]]) -> State:
    """Return a copy on the host, because the tensors of a job change with its next step."""
    tensors, facts = state
    return {name: np.array(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()}, facts


def to_tensors(state: State) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the state in the form that `TrainingJob.restore` takes."""
    arrays, facts = state
    return {name: torch.tensor(array) for name, array in arrays.items()}, facts


class DeviceWorker:
    """Trains the jobs on one device; calls come one at a time, in order."""

    def __init__(self, base: BaseModel, *, recompute: bool = False, faults: FaultPlan = NONE) -> None:
        self.model = FusedModel(base, recompute=recompute)
        self._faults = faults
        self._memory = MemoryMeter(base.device)
        self._jobs: dict[str, TrainingJob] = {}
        self._records: dict[str, list[dict[str, Any]]] = {}
        self._maker = ThreadPoolExecutor(1, "make a state")  # one at a time: memory is bounded
        self._making: dict[str, Future[_Made]] = {}

    @classmethod
    def open(cls, base: Mapping[str, Any], device: str, threads: int | None, **options: Any) -> DeviceWorker:
        """Open a worker on a base model of its own.

        `base`: of `jobs_file.BaseConfig`, as JSON.
        """
        from loramux_runtime.fused.torch_devices import choose_device, set_threads
        from loramux_runtime.jobs.bases import open_base
        from loramux_runtime.jobs.jobs_file import BaseConfig

        model = open_base(BaseConfig.model_validate(dict(base)), choose_device(device))
        set_threads(threads, model.sites.hidden)
        return cls(model, **options)

    def about(self) -> Whereabouts:
        """Return where the worker is; it answers when it is ready."""
        return Whereabouts(device=card_name(self.model.base.device), node=socket.gethostname(), pid=os.getpid())

    def prepare(self, order: JobOrder) -> None:
        """Begin to make a job's state, beside the steps."""
        self._making[order.config["id"]] = self._maker.submit(self._make, order)

    def prepared(self) -> list[str]:
        """Return the jobs whose states have been made, or cannot be (`load` says which)."""
        return [job_id for job_id, making in self._making.items() if making.done()]

    def load(self, order: JobOrder | str) -> Arrival:
        """Take a job in, or the one of this id that has been prepared.

        It can be in the next step unless the answer names a fault, which is the job's alone.
        """
        job_id = order if isinstance(order, str) else order.config["id"]
        try:
            made = self._make(order) if isinstance(order, JobOrder) else self._making.pop(order).result()
            made.training.optimizer.to(self.model.base.device)
            made.training.begin(self.model)
        except BaseException as error:  # also a panic of a library's own: it is this job's
            let_through(error)
            error.__traceback__ = None  # it would pin the tensors of the job
            return without(job_id, error)
        self._jobs[job_id], self._records[job_id] = made
        return Arrival(job_id)

    def _make(self, order: JobOrder) -> _Made:
        """Make a job's state; called in a thread, it touches nothing that others use."""
        config = TrainJob.model_validate(dict(order.config))
        records: list[dict[str, Any]] = []
        training = TrainingJob.new(self.model, config, order.data, log=records.append)
        if order.state is not None:
            training.restore(*to_tensors(order.state))
        return _Made(training, records)

    def state(self, job_id: str) -> State:
        """Return a copy of the job's state."""
        return to_arrays(self._jobs[job_id].state())

    def unload(self, job_id: str) -> State | None:
        """Hand the job's state back and drop the job; None where it could not be taken in."""
        state = self.state(job_id) if job_id in self._jobs else None
        self.drop(job_id)
        return state

    def drop(self, job_id: str) -> None:
        """Drop the job, which is not needed here any more."""
        making = self._making.pop(job_id, None)
        if making is not None:
            making.cancel()
        self._jobs.pop(job_id, None)
        self._records.pop(job_id, None)

    def step(self, entries: Sequence[tuple[str, int]]) -> StepReport:
        """Run one fused step of (job, rows of its micro-batch)."""
        began = time.monotonic()
        training = [self._jobs[job_id] for job_id, _ in entries]
        parts = [
            Part(adapter=job.adapter, batch=job.peek(rows)) for job, (_, rows) in zip(training, entries, strict=True)
        ]
        self._memory.step_begins()
        outcomes = try_step(self.model, parts, self._faults)
        if outcomes is None:
            for job in training:
                job.rewind()
            self._memory.release()
            return StepReport(seconds=time.monotonic() - began, out_of_memory=True)
        for part, outcome in zip(parts, outcomes, strict=True):
            self._jobs[outcome.job_id].commit(part.batch, outcome, self.model)
        return StepReport(
            seconds=time.monotonic() - began,
            out_of_memory=False,
            jobs={job.config.id: self._report(job) for job in training},
            tokens=sum(part.batch.n_tokens for part in parts),
            dynamic_bytes=self._memory.step_bytes(),
            peak_bytes=self._memory.peak_bytes(),
        )

    def _report(self, job: TrainingJob) -> JobReport:
        job_id = job.config.id
        records = list(self._records[job_id])
        self._records[job_id].clear()
        ended = job.finished and not job.diverged and not job.out_of_memory
        return JobReport(
            step=job.step,
            rows_done=job.rows_done,
            tokens=job.tokens,
            stopped=job.stopped,
            diverged=job.diverged,
            out_of_memory=job.out_of_memory,
            p_stop=job.p_stop,
            records=records,
            state=self.state(job_id) if ended else None,
        )

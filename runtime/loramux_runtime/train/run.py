"""This module is `loramux train`: it trains a set of jobs to completion on one device.

It does so under the simulator's policies and decide-apply loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from loramux_policies.loop.intake import Intake
from loramux_policies.loop.job import Job
from loramux_policies.loop.ledger import ledger_of
from loramux_policies.loop.meters import Meters
from loramux_policies.loop.recorder import Recorder
from loramux_policies.loop.scheduler import Scheduler
from loramux_policies.policy import Policy
from loramux_policies.stepping.driver import StepDriver
from loramux_policies.stepping.inbox import Arrivals
from loramux_policies.stepping.residents import Residents
from loramux_profiles.cost import CostModel
from loramux_profiles.devices import DeviceProfile
from loramux_runtime.fused.base_model import BaseModel
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.torch_devices import card_name
from loramux_runtime.jobs.adapter_files import save_adapter
from loramux_runtime.jobs.jobs_file import JobsFile
from loramux_runtime.jobs.preparation import Preparation
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.train.accounts import Accounts
from loramux_runtime.train.executor import Executor, OnStep
from loramux_runtime.train.faults import NONE, FaultPlan
from loramux_runtime.train.host import TrainHost
from loramux_runtime.train.observer import Observer
from loramux_runtime.train.signals import stop_on_signal
from loramux_runtime.train.states import LocalStates
from loramux_runtime.train.times import Times
from loramux_traces.errors import StateError, UsageError
from loramux_traces.job import JobSpec
from loramux_traces.results import empty_timeline, summarise

Log = Callable[[dict[str, Any]], None]


@dataclass(slots=True, kw_only=True)
class TrainResult:
    """Holds one real run in the terms of a simulated one."""

    jobs: pd.DataFrame
    summary: dict[str, Any]
    timeline: dict[str, Any]
    events: list[dict[str, Any]]
    training: list[dict[str, Any]]
    """One record per optimizer step and job: loss, learning rate, gradient norm, ..."""
    steps: list[tuple[float, float]]
    """Measured and predicted seconds of every fused step."""
    device: str
    """Device that the run was on."""
    stopped_by: int | None = None
    """The signal that ended the run, if one did."""
    hopeless: int = 0
    """Jobs that fit the device at no micro-batch size."""
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By job: first and last evaluation of the held-out rows."""
    prediction: dict[str, Any] | None = None
    """How far the fitted profile was off (`observer.Observer.report`); None if none was given."""


class TrainRun:
    """Puts the parts of one run together.

    It loads the data and checks every job before anything is trained. `record`: the events hold
    every fused step too, so that `stepping.replay` can take the decisions again.
    """

    def __init__(
        self,
        file: JobsFile,
        policy: Policy,
        profile: DeviceProfile,
        *,
        base: BaseModel,
        adapters_dir: Path | None = None,
        times: Times | None = None,
        faults: FaultPlan = NONE,
        recompute: bool = False,
        max_resident: float = float("inf"),
        log: Log | None = None,
        on_step: OnStep | None = None,
        record: bool = False,
    ) -> None:
        if policy.copies == "separate":
            raise UsageError(f"policy {policy.name} gives every job a process of its own; train shares one base copy")
        self._adapters_dir = adapters_dir
        self.model = FusedModel(base, recompute=recompute)
        self.training_log: list[dict[str, Any]] = []
        self._log = log
        self.steps: list[tuple[float, float]] = []
        self._on_step = on_step
        self.unsaved: list[str] = []
        """Jobs whose adapter could not be written, and why."""
        preparation = Preparation(base, file.base.path, recompute=recompute)
        # this check is cheap, and so it comes before any rows are read
        for job in file.jobs:
            preparation.check_adapter(job)
        prepared = [preparation.prepare(job, file.folder) for job in file.jobs]
        self.data = {job.config.id: job.data for job in prepared}
        self.notes = [f"base: {note}" for note in base.notes]
        self.notes += [f"{job_id}: {data.report}" for job_id, data in self.data.items()]
        self.specs: list[JobSpec] = sorted(
            (job.spec for job in prepared), key=lambda spec: (spec.submit_s, spec.job_id)
        )
        self._configs = {job.id: job for job in file.jobs}
        self._training: dict[str, TrainingJob] = {}
        self.scores: dict[str, dict[str, Any]] = {}
        cost = CostModel(profile)
        self.observer = None if profile.fitted is None else Observer(profile.fitted)
        self.meters = Meters(1)
        self.executor = Executor(
            self.model,
            self.meters,
            times=times,
            faults=faults,
            on_step=self._stepped,
            observer=self.observer,
        )
        self.residents: Residents[TrainingJob] = Residents(policy)
        accounts = Accounts(self.meters, self.residents, self.executor.peak_bytes)
        self.host = TrainHost(accounts, self._training, self._ended)
        self.recorder = Recorder(self.specs, lambda: self.residents.now_s, [0], events=True, segments=True)
        self.driver = StepDriver(
            self.residents,
            self.executor,
            LocalStates(self.model, self._training),
            note=self.recorder.note if record else None,
        )
        self.ledger = ledger_of(cost, max_resident)
        self.loop = Scheduler(
            policy, [self.ledger], self.driver, max_resident=max_resident, listener=self.recorder.hear
        )
        self.intake = Intake([cost], [1], oracle=False, unschedulable=self.recorder.unschedulable)

    def play(self) -> TrainResult:
        """Train every job to its end; SIGTERM and SIGINT end the run at the next step boundary."""
        with stop_on_signal(self.driver.request_stop) as stopped:
            self.driver.run(self.loop, Arrivals(self.loop, self._arrivals()), self.host)
        stats = self.meters.stats([self.ledger.capacity])
        stats.decisions = self.loop.decisions
        stats.notes = list(self.notes)
        jobs = self.recorder.table()
        timeline = empty_timeline()
        timeline["devices"] = [
            {"device_id": 0, "name": str(self.model.base.device), "memory_capacity_bytes": self.ledger.capacity}
        ]
        timeline["segments"] = self.recorder.segments()
        timeline.update(self.meters.samples())
        return TrainResult(
            jobs=jobs,
            summary=summarise(jobs, stats),
            timeline=timeline,
            events=self.recorder.log() or [],
            training=self.training_log,
            steps=self.steps,
            device=card_name(self.model.base.device),
            stopped_by=stopped[0] if stopped else None,
            hopeless=self.intake.hopeless,
            scores=self.scores,
            prediction=None if self.observer is None else self.observer.report(),
        )

    def _arrivals(self) -> Iterator[Job]:
        """Yield jobs as they are submitted; adapters wait on the host until their job starts."""
        for index, spec in enumerate(self.specs):
            job = self.intake.job(index, spec)
            if job is None:
                continue
            self.data[spec.job_id] = self.data[spec.job_id].bound(job.cost_on(0).rows)
            self._training[spec.job_id] = TrainingJob.new(
                self.model, self._configs[spec.job_id], self.data[spec.job_id], log=partial(self._record, spec.job_id)
            )
            yield job

    def _record(self, job_id: str, record: dict[str, Any]) -> None:
        row = {"t_s": self.executor.clock_s, "job_id": job_id, **record}
        self.training_log.append(row)
        if self._log is not None:
            self._log(row)

    def _stepped(self, step: Any, seconds: float, predicted_s: float) -> None:
        self.steps.append((seconds, predicted_s))
        if self._on_step is not None:
            self._on_step(step, seconds, predicted_s)

    def _ended(self, job: Job, training: TrainingJob) -> None:
        first, last = training.first_evaluation, training.evaluation
        if first is not None and last is not None:
            self.scores[job.job_id] = {"before": first._asdict(), "after": last._asdict()}
        if self._adapters_dir is not None and not training.diverged:
            training.optimizer.to("cpu")
            try:
                save_adapter(training.adapter, self._adapters_dir / job.job_id, self.model.base.name)
            except StateError as error:
                # a full disk costs this job its file, not the other jobs their training
                self.unsaved.append(f"{job.job_id}: {error}")

"""This module is `loramux train`: it trains a set of jobs to completion on one device.

It does so under the simulator's policies and decide-apply loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import pandas as pd

from loramux_policies.loop.blame import check_policy as check_attributes
from loramux_policies.loop.events import Event
from loramux_policies.loop.intake import Intake
from loramux_policies.loop.job import Job
from loramux_policies.loop.ledger import ledger_of
from loramux_policies.loop.meters import Meters
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
from loramux_runtime.jobs.preparation import Preparation, PreparedJob
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.train.accounts import Accounts
from loramux_runtime.train.books import Books
from loramux_runtime.train.executor import Executor, OnStep
from loramux_runtime.train.faults import NONE, FaultPlan
from loramux_runtime.train.host import TrainHost
from loramux_runtime.train.keeper import Keeper
from loramux_runtime.train.observer import Observer
from loramux_runtime.train.progress import Earlier, Progress
from loramux_runtime.train.signals import stop_on_signal
from loramux_runtime.train.states import LocalStates, MadeAtOnce
from loramux_runtime.train.times import RealTimes, Times
from loramux_traces.errors import LoramuxError, StateError, UsageError
from loramux_traces.job import JobSpec
from loramux_traces.results import UNSCHEDULABLE, summarise

Log = Callable[[dict[str, Any]], None]
NAMED: Final = 5
"""Jobs with one and the same note that are named one by one."""
Stopping = Callable[[Callable[[], None]], AbstractContextManager[list[int]]]
"""Is given what asks for a stop, and entered while a signal is to do that."""


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
    interruptions: int = 0
    """How many processes before this one have worked on the run."""
    hopeless: int = 0
    """Jobs that fit the device at no micro-batch size."""
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By job: first and last evaluation of the held-out rows."""
    prediction: dict[str, Any] | None = None
    """How far the fitted profile was off (`observer.Observer.report`); None if none was given."""


def grouped_notes(prepared: Sequence[PreparedJob], *, warnings_only: bool = False) -> list[str]:
    """Return warnings and the notes on each job's rows; the same one of many jobs is one line."""
    by_text: dict[str, list[str]] = {}
    for job in prepared:
        for text in job.warnings if warnings_only else (*job.warnings, *job.notes):
            by_text.setdefault(text, []).append(job.config.id)
    lines = []
    for text, names in by_text.items():
        if len(names) > NAMED:
            lines.append(f"{', '.join(names[:NAMED])} and {len(names) - NAMED:,} more: {text}")
        else:
            lines += [f"{name}: {text}" for name in names]
    return lines


def check_policy(policy: Policy) -> None:
    """Raise UsageError where the policy does not share one base copy among its jobs.

    Raises PolicyError where one of its attributes means nothing, before anything else asks for it.
    """
    check_attributes(policy)
    if policy.copies == "separate":
        raise UsageError(f"policy {policy.name} gives every job a process of its own; train shares one base copy")


class TrainRun:
    """Puts the parts of one run together.

    Every job is checked before anything is trained: here, or before by the caller (`prepared`).
    `record`: the events hold every fused step too, so that `stepping.replay` can take the decisions
    again. With `progress` the run is kept on the disk, at most `checkpoint_s` of training behind;
    with `earlier` it goes on from there. `prepared` then holds the jobs that have not ended.
    """

    def __init__(
        self,
        file: JobsFile,
        policy: Policy,
        profile: DeviceProfile,
        *,
        base: BaseModel,
        prepared: Sequence[PreparedJob] | None = None,
        adapters_dir: Path | None = None,
        progress: Progress | None = None,
        earlier: Earlier | None = None,
        checkpoint_s: float = 60.0,
        times: Times | None = None,
        faults: FaultPlan = NONE,
        recompute: bool = False,
        max_resident: float = float("inf"),
        log: Log | None = None,
        warn: Callable[[str], None] = lambda text: None,
        on_step: OnStep | None = None,
        record: bool = False,
    ) -> None:
        check_policy(policy)
        self._adapters_dir = adapters_dir
        self.model = FusedModel(base, recompute=recompute)
        self._log, self._warn = log, warn
        self.steps: list[tuple[float, float]] = []
        self._on_step = on_step
        if prepared is None:
            preparation = Preparation(base, file.base.path, recompute=recompute)
            prepared = preparation.prepare_all(file.jobs, file.folder, source=file.source)
        self.data = {job.config.id: job.data for job in prepared}
        self.notes = [f"base: {note}" for note in base.notes] + list(grouped_notes(prepared))
        self.specs: list[JobSpec] = sorted(
            (job.spec for job in prepared), key=lambda spec: (spec.submit_s, spec.job_id)
        )
        self._configs = {job.config.id: job.config for job in prepared}
        self._training: dict[str, TrainingJob] = {}
        cost = CostModel(profile)
        self.observer = None if profile.fitted is None else Observer(profile.fitted)
        self.meters = Meters(1)
        self.executor = Executor(
            self.model,
            self.meters,
            times=times or RealTimes(0.0 if earlier is None else earlier.now_s),
            faults=faults,
            on_step=self._stepped,
            observer=self.observer,
        )
        self.residents: Residents[TrainingJob] = Residents(policy)
        accounts = Accounts(self.meters, self.residents, self.executor.peak_bytes)
        self.host = TrainHost(accounts, self._training, self._ended, self._boundary)
        self.books = Books(self.specs, self.meters, lambda: self.residents.now_s, earlier)
        self.driver = StepDriver(
            self.residents,
            self.executor,
            LocalStates(
                self.model,
                self._training,
                MadeAtOnce(self._training, self._new),
                stopping=lambda: self.driver.stopping,
            ),
            note=self.books.recorder.note if record else None,
        )
        self.ledger = ledger_of(cost, max_resident)
        self.loop = Scheduler(policy, [self.ledger], self.driver, max_resident=max_resident, listener=self._hear)
        self.books.loop = self.loop
        self.intake = Intake([cost], [1], oracle=False, unschedulable=self.books.unschedulable)
        self.keeper = None
        if progress is not None:
            self.keeper = Keeper(
                progress,
                self.books,
                self._training,
                every_s=checkpoint_s,
                attained_s=self._attained_s,
                settle=self._settle,
                warn=warn,
                faults=faults,
            )

    def play(self, stopping: Stopping = stop_on_signal, after_policy: Callable[[], None] = lambda: None) -> TrainResult:
        """Train every job to its end; a signal ends the run at the next step boundary.

        `stopping` is entered with what asks for that, and gives the signals that came;
        `after_policy` is called at every boundary, after the policy has decided.
        """
        self._after_policy = after_policy
        if self.keeper is not None:
            self.keeper.begin(self._configs)
        with stopping(self.driver.request_stop) as stopped:
            try:
                self.driver.run(self.loop, Arrivals(self.loop, self._arrivals()), self.host)
            except LoramuxError:
                # the policy has ended the run
                self._close()
                raise
            # after anything else what is in memory may be half done: the last checkpoints hold then
            self._close()
        return self._result(stopped[0] if stopped else None)

    def _result(self, stopped_by: int | None) -> TrainResult:
        books = self.books
        self._settle()
        stats = books.stats(self.ledger.capacity)
        stats.notes = list(self.notes)
        jobs = books.table({job_id: training.tokens for job_id, training in self._training.items()})
        return TrainResult(
            jobs=jobs,
            summary=summarise(jobs, stats),
            timeline=books.timeline(self.ledger.capacity, str(self.model.base.device)),
            events=books.events(),
            training=books.all_records(),
            steps=self.steps,
            device=card_name(self.model.base.device),
            stopped_by=stopped_by,
            interruptions=books.earlier.interruptions,
            hopeless=int((jobs["final_state"] == UNSCHEDULABLE).sum()),
            scores=books.earlier.scores | books.scores,
            prediction=None if self.observer is None else self.observer.report(),
        )

    def _arrivals(self) -> Iterator[Job]:
        """Yield jobs as they are submitted; those that began in an earlier process are taken up."""
        for index, spec in enumerate(self.specs):
            job = self.intake.job(index, spec)
            if job is None:
                continue
            self.data[spec.job_id] = self.data[spec.job_id].bound(job.cost_on(0).rows)
            if self.keeper is not None and self.books.has_begun(spec.job_id):
                training = self._new(job)
                unreadable = self.keeper.take_up(job, training)
                if unreadable is not None:
                    self._warn(f"{spec.job_id} is left as it is: {unreadable}")
                    self.books.unfinish(spec.job_id, unreadable)
                    continue
                self._training[spec.job_id] = training
            yield job

    def _new(self, job: Job) -> TrainingJob:
        """Return the state of a job at its first step; its adapter waits on the host."""
        name = job.job_id
        return TrainingJob.new(self.model, self._configs[name], self.data[name], log=partial(self._record, name))

    def _record(self, job_id: str, record: dict[str, Any]) -> None:
        row = {"t_s": self.executor.clock_s, "job_id": job_id, **record}
        self.books.records.append(row)
        if self._log is not None:
            self._log(row)

    def _hear(self, event: Event, job: Job, devices: tuple[int, ...], detail: str) -> None:
        self.books.hear(event, job, devices, detail)
        if event in (Event.FAIL, Event.REJECT):
            # the other ends are told to `_ended`
            self._training.pop(job.job_id, None)
            if self.keeper is not None:
                self.keeper.ended(job.job_id)

    def _stepped(self, step: Any, seconds: float, predicted_s: float) -> None:
        self.steps.append((seconds, predicted_s))
        if self._on_step is not None:
            self._on_step(step, seconds, predicted_s)

    def _close(self) -> None:
        if self.keeper is not None:
            self.keeper.close()

    def _boundary(self) -> None:
        self._after_policy()
        if self.keeper is not None:
            self.keeper.boundary(self.residents.now_s)

    def _settle(self) -> None:
        """Bring the books up to this instant."""
        for job in self.loop.cluster.running.values():
            self.driver.sync(job)
        for device in self.residents.devices:
            self.host.residents_change(device)

    def _attained_s(self, job_id: str) -> float:
        job = self.loop.cluster.active.get(job_id)
        if job is None:
            return 0.0
        if job_id in self.loop.cluster.running:
            self.driver.sync(job)
        return job.attained_s

    def _ended(self, job: Job, training: TrainingJob) -> None:
        first, last = training.first_evaluation, training.evaluation
        if first is not None and last is not None:
            self.books.scores[job.job_id] = {"before": first._asdict(), "after": last._asdict()}
        if self._adapters_dir is not None and not training.diverged and not training.out_of_memory:
            training.optimizer.to("cpu")
            # a process that was killed may have written it, and not noted that the job had ended
            again = self.keeper is not None
            try:
                save_adapter(training.adapter, self._adapters_dir / job.job_id, self.model.base.name, overwrite=again)
            except StateError as error:
                # a full disk costs this job its file, not the other jobs their training
                self._warn(f"{job.job_id} is not finished: {error}")
                self.books.unfinish(job.job_id, str(error), job)
                if self.keeper is not None:
                    self.keeper.save_as_it_is(job.job_id, training)
                return
        if self.keeper is not None:
            self.keeper.ended(job.job_id)

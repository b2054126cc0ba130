"""The live scheduler: the simulator's loop and policies over real training, with a queue that outlives the process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Final

from loramux_policies.errors import PolicyError
from loramux_policies.loop.events import Event
from loramux_policies.loop.job import Job
from loramux_policies.loop.scheduler import Scheduler
from loramux_policies.policy import Policy
from loramux_policies.registry import create
from loramux_policies.stepping.driver import ledger_of
from loramux_policies.stepping.live_run import LiveRun
from loramux_profiles.cost import CostModel
from loramux_profiles.devices import DeviceProfile
from loramux_runtime.fused.base_model import BaseModel
from loramux_runtime.jobs.adapter_files import save_adapter
from loramux_runtime.jobs.preparation import Admission
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.commands import Commands
from loramux_runtime.live.drive.clock import LiveTimes, MonotonicTimes, first_reading
from loramux_runtime.live.drive.engine import Engine
from loramux_runtime.live.drive.pool import WorkerPool
from loramux_runtime.live.inbox import LiveInbox
from loramux_runtime.live.quarantine import Aside
from loramux_runtime.live.roster import Roster
from loramux_runtime.live.settings import LiveSettings
from loramux_runtime.live.state.book import Book
from loramux_runtime.live.state.checkpoint import CheckpointStore
from loramux_runtime.live.state.marker import Marker, read_marker
from loramux_runtime.live.state.saving import Saving
from loramux_runtime.live.state.store import DRAINING, HELD, OPEN, QUEUED, RUNNING, WAITING, Row, Store
from loramux_runtime.live.suspects import Suspects
from loramux_runtime.live.watch.progress import Progress
from loramux_runtime.train.faults import NONE, FaultPlan
from loramux_runtime.train.signals import stop_on_signal
from loramux_traces.errors import LoramuxError, StateError, UsageError
from loramux_traces.results import REJECTED, UNSCHEDULABLE

FALLBACK: Final = "fifo"
IDLE_FLUSH_S: Final = 5.0
"""How often an idle scheduler says that it is there."""
STALL_S: Final = 30.0
"""A device that a policy leaves empty for so long, with a job waiting that fits, is no plan but a
stall.
"""
Watch = Callable[[float], float | None]
"""(now in seconds) -> the bytes that the jobs may use from now on, where that has changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a scheduler's process ended."""

    stopped_by: int | None
    """The signal, if one did."""
    failed: int
    """Jobs of the folder that failed, or were rejected for their data."""
    hopeless: int
    """Jobs of the folder that fit the device at no micro-batch size."""


class LiveService:
    """One scheduler process on one state folder, which the caller holds the lock of (`loramux_traces.locking`)."""

    def __init__(
        self,
        store: Store,
        settings: LiveSettings,
        policy: Policy,
        profile: DeviceProfile,
        *,
        base: BaseModel,
        pool: WorkerPool | None = None,
        hang_s: float = inf,
        tokenizer_path: Path | None = None,
        times: LiveTimes | None = None,
        faults: FaultPlan = NONE,
        warn: Callable[[str], None] = lambda text: None,
        watch: Watch | None = None,
        on_flush: Sequence[Callable[[], None]] = (),
        on_record: Callable[[str, Mapping[str, Any]], None] | None = None,
        rss_before: int | None = None,
    ) -> None:
        if policy.copies == "separate" and policy.seats > 1:
            what = f"policy {policy.name} gives every job a process of its own; a live device has one base copy"
            raise UsageError(what)
        self.store, self.settings = store, settings
        self._warn, self._watch = warn, watch
        self._on_flush, self._on_record = on_flush, on_record
        self.base = base
        """With a `pool` of workers: its outline (`train.outline_base`)."""
        self._times: LiveTimes = times or MonotonicTimes()
        self._last_s = store.fact("now_s")
        start_s = first_reading(self._last_s, store.fact("now_unix_s"), time.time())
        self._times.go_on_from(start_s)
        self.book = Book(store, lambda: self.executor.now_s, faults)
        cost = CostModel(profile)
        self._training: dict[str, TrainingJob] = {}
        self.engine = Engine(
            base=base,
            pool=pool,
            recompute=settings.recompute,
            fitted=profile.fitted,
            faults=faults,
            note=self.book.note if settings.record else None,
            rss_before=rss_before,
            hang_s=hang_s,
        )
        self.executor, make = self.engine.start(self, self._times, policy, self._training, self._ended)
        devices = self.engine.devices
        admission = Admission(base, tokenizer_path, recompute=settings.recompute)
        self.roster = Roster(admission, make, cost, devices, self.book)
        self.capacity_bytes = float(cost.capacity_bytes)
        """Of one device."""
        ledgers = [ledger_of(cost, settings.max_resident, device_id) for device_id in range(devices)]
        self.loop = Scheduler(policy, ledgers, self.executor, max_resident=settings.max_resident, listener=self._hear)
        self.saving = Saving(
            CheckpointStore(store.folder / "checkpoints", faults=faults, warn=warn),
            self.book,
            self._training,
            settings.checkpoint_s,
            self.executor.at_rest,
            self._attained_s,
        )
        self.marker = Marker(store.folder)
        self.suspects = Suspects(store, read_marker(store.folder))
        self.progress = Progress(self)
        self.commands = Commands(self)
        self.inbox = LiveInbox(
            store,
            admit=self.admit,
            obey=self.commands.obey,
            lasting=lambda: self._lasting,
            polled=lambda: self.marker.set("decide"),
        )
        self.draining = False
        self.worker_deaths: int = store.fact("worker_deaths", 0)
        self._empty_since_s = start_s
        self.aside = Aside(self)
        self._sampled = True
        self._finished: list[str] = []
        """Their checkpoints are not needed once the end is committed."""
        self.policy_errors: int = store.fact("policy_errors", 0)

    # -- the process

    def play(self) -> Outcome:
        """Schedule until a signal, `drain`, or (with exit_when_idle) the end of every job."""
        self._recover()
        with stop_on_signal(self.executor.request_stop) as stopped:
            try:
                self.executor.run(self.loop, self.inbox)
            except LoramuxError:  # the policy or the disk has ended it
                self._close()
                raise
            # Anything else is a crash, or a second signal: it ends at once, for what is in memory
            # may be half done, and the marker tells the next process whose step it was
            self._close()
        ended = [row["state"] for row in self.store.jobs()]
        return Outcome(
            stopped_by=stopped[0] if stopped else None,
            failed=sum(state.startswith("FAILED") or state == REJECTED for state in ended),
            hopeless=ended.count(UNSCHEDULABLE),
        )

    @property
    def _lasting(self) -> bool:
        """Whether something may still come: a job, a command, or the memory that others have taken."""
        if self._watch is not None and self.loop.cluster.active:
            return True
        return not self.settings.exit_when_idle and not self.draining

    def _recover(self) -> None:
        """Take up what a process before this one has left."""
        store = self.store
        with store.transaction():
            for row in store.jobs(RUNNING):
                left = {"stopped_s": self._last_s, "tokens_per_s": None, "expected_finish_s": None}
                store.update(row["job_id"], state=WAITING, **left)
            if self._last_s is not None:  # nobody was there from then on
                waiting = store.count(QUEUED, WAITING, HELD, by_s=self._last_s)
                store.add_samples((self._last_s, d, 0.0, 0, waiting) for d in range(self.engine.devices))
            self.draining = bool(store.fact("draining")) and not self.suspects.ended_by_itself
            self.suspects.note()
            policy_hung = self.suspects.policy_hung
            died = self._last_s is not None and not self.suspects.ended_by_itself
            store.set_facts(
                starts=store.fact("starts", 0) + 1,
                restarts=store.fact("restarts", 0) + died,
                policy=self.settings.policy,
                hung_in_decide=False,
            )
        self.saving.tidy({row["job_id"] for row in store.jobs(*OPEN)}, self._warn)
        self.aside.begin(store.jobs(QUEUED, WAITING))
        if policy_hung:
            error = PolicyError(f"policy {self.loop.policy.name} was killed while it decided")
            if self.settings.on_policy_error == "exit":
                self.marker.set("stopped")
                raise error
            self.excused(error)
        row = {"t_s": self._times.now_s(), "event": "scheduler", "detail": f"policy {self.loop.policy.name}"}
        self.book.note(row if self._last_s is None else {**row, "last_s": self._last_s})

    def _close(self) -> None:
        """The process ends: everything is on disk before it says so."""
        for job_id, reason in self.saving.save_all():
            self._warn(f"{job_id}: {reason}")
        for device in range(self.engine.devices):
            self.book.sample(device, 0.0, 0, self.n_waiting)
        self.flush()
        self.store.set_facts(draining=False)
        self.marker.set("stopped")
        self.marker.close()

    def flush(self) -> None:
        """Commit what is known."""
        self.progress.note(self.executor.now_s)
        self.book.flush(now_s=self._times.now_s(), now_unix_s=time.time(), **self.progress.facts())
        for job_id in self._finished:
            self.saving.forget(job_id, self._warn)
            self.progress.forget(job_id)
            self.book.forget(job_id)
        self._finished.clear()
        for call in self._on_flush:
            call()

    # -- jobs in

    def admit(self, row: Row) -> None:
        """The time of a job has come."""
        row = self.store.job(row["job_id"])
        if row["state"] not in OPEN or row["state"] == HELD or row["job_id"] in self.loop.cluster.active:
            return
        if not self.aside.keep(row):
            self.arrive(row)

    def arrive(self, row: Row) -> bool:
        """Whether the job of this row is in the loop now; else it has ended, or waits for its user."""
        self.marker.set("idle")  # rows may take long to read: no sign of a policy that hangs
        self._sampled = False
        if not self.loop.cluster.queue.count:
            self._empty_since_s = self.executor.now_s
        unreadable = None if self.in_memory(row["job_id"]) else self.saving.checkpoints.unreadable(row["job_id"])
        if unreadable is not None:
            self.book.hold_apart(row["job_id"], f"its checkpoint cannot be read now: {unreadable}")
            return False
        job = self.roster.job(row)
        if job is not None:
            self.loop.arrive(job)
            return True
        self.book.flush()
        if self.store.job(row["job_id"])["state"] not in OPEN:
            self.cancelled(row["job_id"])
        return False

    def drain(self) -> None:
        """Begin no job any more; end when those that have begun have ended."""
        self.draining = True
        for job in list(self.loop.cluster.active.values()):
            if job.first_start_s < 0:
                self.loop.withdraw(job, Event.HOLD, DRAINING)
                self.book.set(job.job_id, state=QUEUED)
                self.roster.forget(job.job_id)
                self.aside.put(self.store.job(job.job_id), DRAINING)
        self.aside.drained()

    # -- what the executor asks for (contract: `live_executor.Host`)

    def training_of(self, job: Job) -> TrainingJob:
        """From the newest valid checkpoint, or from the first step (the same bits again, if more of them)."""
        training = self.roster.training(job.job_id, self._record)
        self.saving.load(job, training, self._warn)
        self.store.forget_records(job.job_id, training.step)
        return training

    def _attained_s(self, job_id: str) -> float:
        """Service that the job has received by now."""
        job = self.loop.cluster.active.get(job_id)
        if job is None:
            return self.book.attained_s(job_id)
        if job.job_id in self.loop.cluster.running:
            self.executor.sync(job)
        return job.attained_s

    def training_again(self, job: Job) -> TrainingJob:
        """As it was saved last: what it has learned since is lost with its worker, and will be learned again."""
        self.book.flush()
        training = self.training_of(job)
        self.book.set(job.job_id, step=training.step, tokens=training.tokens)
        return training

    def worker_died(self, device_id: int, how: str, in_step: Mapping[str, float]) -> None:
        """Say so, and count it against the jobs of its step as the death of this process would be."""
        self.worker_deaths += 1
        self._warn(f"the worker of device {device_id} died: {how}")
        self.book.note({"t_s": self._times.now_s(), "event": "worker-died", "devices": [device_id], "detail": how})
        self.book.flush()
        self.suspects.blame(in_step)
        for job_id in in_step:
            row, job = self.store.job(job_id), self.loop.cluster.active.get(job_id)
            if job is None or not self.suspects.alone(row):
                continue
            if self.suspects.hopeless(row, alone=len(in_step) == 1):
                self.loop.withdraw(job, Event.CRASH, self.suspects.reason(row))
                self.cancelled(job_id)
            else:
                self.loop.withdraw(job, Event.LOST, "runs alone: its worker died twice in its steps")
                self.aside.put(row, "runs alone: its worker died twice in its steps")

    def worker_up(self, device_id: int, where: str) -> None:
        """Say so."""
        self.book.note({"t_s": self._times.now_s(), "event": "worker-up", "devices": [device_id], "detail": where})

    def _record(self, job_id: str, record: dict[str, Any]) -> None:
        row = {"t_s": self.executor.clock_s, "job_id": job_id, **record}
        self.book.record(job_id, row)
        if self._on_record is not None:
            self._on_record(job_id, row)

    def step_follows(self, runs: Sequence[LiveRun[TrainingJob]]) -> None:
        """Leave a trace of who is in the step: it may be the last thing this process does."""
        self.marker.set("step", {run.job_id: run.training.progress_steps for run in runs})

    def residents_change(self) -> None:
        """Their memory so far is theirs."""
        self.progress.note_memory()
        self._sampled = False

    def news(self) -> bool:
        """Something to do for an idle device."""
        self.marker.set("idle")
        if self._times.now_s() - self.book.committed_s >= IDLE_FLUSH_S:
            self.flush()
        return self.inbox.news() or self._look_at_memory() or self._stall_due(self._times.now_s())

    def _look_at_memory(self) -> bool:
        changed = None if self._watch is None else self._watch(self._times.now_s())
        if changed is None:
            return False
        self.capacity_bytes = changed
        self.book.note({"t_s": self._times.now_s(), "event": "capacity", "bytes": changed})
        self.loop.set_capacity(0, changed)
        return True

    def boundary(self) -> bool:
        """Save and commit what is due, and see whether the run should go on as it does."""
        now_s = self.executor.now_s
        again = self._look_at_memory()
        if self.loop.cluster.running or not self.loop.cluster.queue.count:
            self._empty_since_s = now_s
        elif self._stall_due(now_s):
            again = self.stalled() or again
            self._empty_since_s = now_s  # where nothing fits: look again after as long
        again = self.aside.turn() or again
        if self.saving.due(now_s):
            self.marker.set("save")
            for job, reason in self.saving.save_due(now_s):
                self._hold(job, reason)
                again = True
        if self.book.urgent or now_s - self.book.committed_s >= self.settings.flush_s:
            self.flush()
        if not self._sampled:  # what is held is counted in the store: after the commit
            self._sampled = True
            self.progress.sample()
        if self.draining and not self.loop.cluster.active and not self.aside.busy:
            self.executor.request_stop()
        self.marker.set("decide")
        return again

    def _hold(self, job_id: str, reason: str) -> None:
        """A job whose state cannot be saved must not go on as if it could."""
        self._warn(f"{job_id} is paused: {reason}")
        job = self.loop.cluster.active.get(job_id)
        if job is not None:
            self.loop.withdraw(job, Event.HOLD, reason)

    def excused(self, error: PolicyError) -> bool:
        """Go on under fifo, unless told otherwise."""
        self.policy_errors += 1
        if self.settings.on_policy_error == "exit" or self.loop.policy.name == FALLBACK:
            return False
        self._warn(f"{error}; going on under {FALLBACK}")
        self.book.note({"t_s": self.executor.now_s, "event": "policy-error", "detail": str(error)})
        self.use_policy(FALLBACK)
        return True

    def use_policy(self, text: str) -> None:
        """Decide by another policy from now on. UsageError where there is no such policy."""
        policy, before = create(text), self.loop.policy
        if policy.copies == "separate" and policy.seats > 1:
            raise UsageError(f"policy {policy.name} gives every job a process of its own; {before.name} stays")
        try:
            self._switch(policy)
        except PolicyError as error:
            self._switch(before)
            raise UsageError(f"{error}; {before.name} stays") from error
        self.book.note({"t_s": self.executor.now_s, "event": "policy", "detail": text})
        self.book.urgent = True

    def _switch(self, policy: Policy) -> None:
        self.executor.use_policy(policy)
        self.loop.use_policy(policy)

    def _stall_due(self, now_s: float) -> bool:
        """Whether to ask why nothing runs. (fifo waits for its first job to fit: others have taken memory.)"""
        if self.loop.cluster.running or not self.loop.cluster.queue.count or self.loop.policy.name == FALLBACK:
            return False
        return now_s - self._empty_since_s > STALL_S

    def stalled(self) -> bool:
        """Whether another policy has taken over because this one leaves an empty device to itself. PolicyError where
        that is to end the scheduler.
        """
        if self.loop.policy.name == FALLBACK:
            return False
        free = [ledger for ledger in self.loop.cluster.fleet if ledger.capacity > 0.0]
        fits = [
            job.job_id for job in self.loop.cluster.queue if any(ledger.has_room(job.cost_on(0)) for ledger in free)
        ]
        if not fits:
            return False
        self._empty_since_s = self.executor.now_s
        what = f"policy {self.loop.policy.name} starts nothing although the device is empty and {fits[0]} fits it"
        error = PolicyError(what)
        if not self.excused(error):
            raise error
        return True

    def alone_out_of_memory(self, job: Job) -> Job | None:
        """Half the rows at a time. (Other bits from here on: the log says so.)"""
        smaller = self.roster.halved(job)
        if smaller is not None:
            detail = f"{smaller.cost_on(0).rows} rows at a time from now on"
            self.book.note({"t_s": self.executor.now_s, "event": "split", "job_id": job.job_id, "detail": detail})
        return smaller

    # -- jobs out

    def _hear(self, event: Event, job: Job, devices: tuple[int, ...], detail: str) -> None:
        self.book.hear(event, job, devices, detail)
        self._sampled = False
        # the other ends are told to `_ended` or come from `cancelled`
        if event in (Event.FAIL, Event.REJECT):
            self.cancelled(job.job_id)

    def _ended(self, job: Job, training: TrainingJob) -> None:
        self.book.set(job.job_id, step=training.step, tokens=training.tokens)
        if not training.diverged:
            training.optimizer.to("cpu")
            try:
                self.export(job.job_id, self.store.folder / "adapters" / job.job_id)
            except StateError as error:
                self._unfinished(job, training, str(error))
                return
        self._finished.append(job.job_id)
        self.roster.forget(job.job_id)

    def _unfinished(self, job: Job, training: TrainingJob, reason: str) -> None:
        """A job is not done before its adapter is on the disk: it is paused, and `resume` tries again."""
        self._warn(f"{job.job_id} is paused: {reason}")
        self.book.unfinish(job, reason)
        self.roster.forget(job.job_id)
        self.book.flush()  # its records, before the checkpoint that has them behind it
        try:
            self.saving.save(job.job_id, training)
        except StateError:  # from its last checkpoint then: the same bits again
            self._warn(f"{job.job_id}: nor can its checkpoint be written")

    @property
    def n_waiting(self) -> int:
        """Jobs that have come and are on no device, those that are paused by a user or set aside among them: they are
        what the waiting and paused times of the table add up to.
        """
        return self.loop.cluster.n_waiting + len(self.aside) + self.store.count(HELD, by_s=self.executor.now_s)

    def joins(self, job: Job) -> None:
        """A job's state is about to be brought onto its device: if that is the end of this process, it is suspect."""
        self.marker.set("step", {job.job_id: job.done_steps})

    def joined(self) -> None:
        """It is there; the policy may be asked again."""
        self.marker.set("decide")

    def in_memory(self, job_id: str) -> bool:
        """Whether the job has a training state."""
        return job_id in self._training

    def cancelled(self, job_id: str) -> None:
        """Nothing of the job is needed any more."""
        self._sampled = False
        self._training.pop(job_id, None)
        self._finished.append(job_id)
        self.roster.forget(job_id)

    def export(self, job_id: str, folder: Path) -> None:
        """Write the adapter of a job in memory as it is now. StateError where it cannot be written."""
        job = self.loop.cluster.active.get(job_id)
        if job is not None:
            self.executor.bring(job)
        save_adapter(self._training[job_id].adapter, folder, self.base.name, overwrite=True)

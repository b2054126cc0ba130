"""This module is the live scheduler.

It runs the simulator's loop and policies over real training, with a queue that outlives the
process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf
from typing import Any

from loramux_policies.errors import PolicyError
from loramux_policies.loop.events import Event
from loramux_policies.loop.job import Job
from loramux_policies.loop.ledger import ledger_of
from loramux_policies.loop.scheduler import Scheduler
from loramux_policies.policy import Policy
from loramux_policies.stepping.driver import StepDriver
from loramux_profiles.cost import CostModel
from loramux_profiles.devices import DeviceProfile
from loramux_runtime.fused.base_model import BaseModel
from loramux_runtime.jobs.checkpoint import CheckpointStore
from loramux_runtime.jobs.saving import Saving
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.admission import Admission
from loramux_runtime.live.closing import write_at_end
from loramux_runtime.live.commands import Commands
from loramux_runtime.live.desk import Desk, OnRecord
from loramux_runtime.live.drive.engine import Engine
from loramux_runtime.live.drive.live_times import LiveTimes, MonotonicTimes, first_reading
from loramux_runtime.live.drive.makers import Makers
from loramux_runtime.live.drive.pool import WorkerPool
from loramux_runtime.live.drive.step_marks import StepMarks
from loramux_runtime.live.host import PLAY_S, LiveHost, Watch
from loramux_runtime.live.inbox import LiveInbox
from loramux_runtime.live.pace import Pace
from loramux_runtime.live.policy_guard import PolicyGuard, check_live
from loramux_runtime.live.quarantine import Quarantine
from loramux_runtime.live.reading.readers import Reading
from loramux_runtime.live.reading.row_files import ROWS, RowFiles
from loramux_runtime.live.recovery import take_up
from loramux_runtime.live.restoring import Restoring
from loramux_runtime.live.roster import Roster
from loramux_runtime.live.settings import LiveSettings
from loramux_runtime.live.state.book import Book
from loramux_runtime.live.state.job_rows import HELD, OPEN, QUEUED, WAITING, Fields
from loramux_runtime.live.state.marker import Marker, read_marker
from loramux_runtime.live.state.moments import moment
from loramux_runtime.live.state.same_folder import FolderGone, watch_folder
from loramux_runtime.live.state.store import Store
from loramux_runtime.live.suspects import Suspects
from loramux_runtime.live.watch.base_watch import BaseWatch
from loramux_runtime.live.watch.notes import StatusNotes
from loramux_runtime.train.accounts import Accounts
from loramux_runtime.train.faults import NONE, FaultPlan
from loramux_runtime.train.signals import stop_on_signal
from loramux_traces.errors import LoramuxError
from loramux_traces.results import REJECTED, UNSCHEDULABLE

Stops = Callable[[Callable[[], None]], AbstractContextManager[list[int]]]
"""Turns signals into a stop while it is entered, and gives those that came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Says how a scheduler's process ended."""

    stopped_by: int | None
    """Signal that ended the process, if one did."""
    failed: int
    """Jobs of the folder that failed, or were rejected for their data."""
    hopeless: int
    """Jobs of the folder that fit the device at no micro-batch size."""

    @classmethod
    def of(cls, states: Sequence[str], stopped: Sequence[int]) -> Outcome:
        """Return the outcome for jobs in these states, after these signals."""
        return cls(
            stopped_by=stopped[0] if stopped else None,
            failed=sum(state.startswith("FAILED") or state == REJECTED for state in states),
            hopeless=states.count(UNSCHEDULABLE),
        )


class LiveService:
    """Puts a scheduler together on one state folder, and plays it.

    The caller holds the folder's lock (`loramux_traces.locking`). With a `pool` of workers, `base`
    is the outline of their base model. `stops` turns signals into a stop. `warn` is told what a
    user should know; `on_flush` is called after every commit, `on_record` with every training
    record.
    """

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
        reading: Reading,
        times: LiveTimes | None = None,
        faults: FaultPlan = NONE,
        warn: Callable[[str], None] = lambda text: None,
        watch: Watch | None = None,
        base_watch: BaseWatch | None = None,
        on_flush: Sequence[Callable[[], None]] = (),
        on_record: OnRecord | None = None,
        stops: Stops = stop_on_signal,
        after_policy: Callable[[], None] = lambda: None,
    ) -> None:
        check_live(policy)
        self.store, self.settings = store, settings
        self._warn, self._watched = warn, watch is not None
        self._stops, self._base_watch = stops, base_watch or BaseWatch(None, warn)
        self._times: LiveTimes = times or MonotonicTimes()
        self._last_s = store.fact("now_s")
        start_s = first_reading(self._last_s, store.facts(), moment())
        self._times.go_on_from(start_s)
        cost = CostModel(profile)
        self.training: dict[str, TrainingJob] = {}
        """Training states in memory, by job id."""
        self.marker = Marker(store.folder)
        self.book = Book(store, lambda: self.driver.now_s, faults)
        self.engine = Engine(
            base=base,
            pool=pool,
            recompute=settings.recompute,
            fitted=profile.fitted,
            faults=faults,
            note=self.book.note if settings.record else None,
            hang_s=hang_s,
        )
        marks = StepMarks(self.marker)
        # these are lambdas, as the parts that they name are made after this one
        self.drive = self.engine.start(
            policy,
            self._times,
            self.training,
            marks,
            makers=Makers(
                lambda: self.restoring,
                self.training,
                active=lambda job_id: self.loop.cluster.active.get(job_id),
                joining=marks.joining,
                making=self.marker.making,
                suspect=lambda job_id: bool(self.book.row(job_id)["admission_deaths"]),
            ),
            find_again=lambda job: self.restoring.again(job),
            worker_up=lambda device_id, where: self.host.worker_up(device_id, where),
            stopping=lambda: self.driver.stopping,
        )
        residents, states = self.drive.residents, self.drive.states
        # a recorded stream is of one device, whose jobs never leave in mid-step
        note = self.engine.note if pool is None else None
        self.driver = StepDriver(residents, self.drive.devices, states, note=note)
        n_devices, files = self.engine.n_devices, RowFiles(store.folder / ROWS)
        self.roster = Roster(base, files, self.drive.make, cost, n_devices, self.book, recompute=settings.recompute)
        self.loop = Scheduler(
            policy,
            [ledger_of(cost, settings.max_resident, device_id) for device_id in range(n_devices)],
            self.driver,
            max_resident=settings.max_resident,
            listener=self._hear,
        )
        if self.drive.workforce is not None:
            self.drive.workforce.loop = self.loop
        self.saving = Saving(
            CheckpointStore(store.folder / "checkpoints", faults=faults, warn=warn),
            self.book.flush,
            self.training,
            settings.checkpoint_s,
            states.at_rest,
            lambda job_id: self.desk.attained_s(job_id),
        )
        self.restoring = Restoring(
            self.roster, self.saving, self.book, faults, lambda job_id, row: self.desk.record(job_id, row), warn
        )
        self.suspects = Suspects(store, read_marker(store.folder))
        self.notes = StatusNotes(store, self.book, self.loop, self.drive, self.driver, lambda: self.n_waiting)
        self.guard = PolicyGuard(
            self.loop,
            self.driver,
            self.book,
            warn,
            exits=settings.on_policy_error == "exit",
            errors=store.fact("policy_errors", 0),
            empty_since_s=start_s,
        )
        self.pace = Pace(self._times.now_s, lambda: bool(self.loop.cluster.running))
        self.admission = Admission(
            reading,
            self.pace,
            row=self.book.row,
            order=self.roster.order,
            arrive=lambda row, answer: self.desk.arrive(row, answer),
            training=lambda: bool(self.loop.cluster.running),
        )
        self.quarantine = Quarantine(
            self.book,
            self.loop,
            due=lambda row: self.desk.due(row),
            arrive=self.admission.put,
            reading=lambda job_id: job_id in self.admission,
            draining=lambda: self.desk.draining,
        )
        self.desk = Desk(
            store,
            self.book,
            self.roster,
            self.saving,
            self.training,
            loop=self.loop,
            driver=self.driver,
            guard=self.guard,
            quarantine=self.quarantine,
            admission=self.admission,
            files=files,
            faults=faults,
            keep_s=settings.keep_s,
            notes=self.notes,
            marker=self.marker,
            clock_s=lambda: self.drive.devices.clock_s,
            facts=self._facts,
            base_name=base.name,
            warn=warn,
            on_flush=(self._base_watch.look, *on_flush),
            on_record=on_record,
        )
        self.inbox = LiveInbox(
            store,
            due=self.desk.due,
            obey=lambda command: self.commands.obey(command),
            obeyed=self.book.answered,
            submitted=lambda job_id, t_s: self.book.set(job_id, submit_s=t_s),
            lasting=lambda: self._lasting,
            pace=self.pace,
            polled=self._polled,
        )
        self.commands = Commands(
            self.book,
            self.inbox,
            loop=self.loop,
            driver=self.driver,
            desk=self.desk,
            guard=self.guard,
            quarantine=self.quarantine,
            admission=self.admission,
            saving=self.saving,
        )
        self.host = LiveHost(
            store,
            self.book,
            self.loop,
            self.training,
            accounts=Accounts(self.drive.meters, residents, self.drive.devices.peak_bytes),
            desk=self.desk,
            guard=self.guard,
            quarantine=self.quarantine,
            roster=self.roster,
            saving=self.saving,
            suspects=self.suspects,
            notes=self.notes,
            marker=self.marker,
            inbox=self.inbox,
            admission=self.admission,
            workforce=self.drive.workforce,
            clock_s=self._times.now_s,
            request_stop=self.driver.request_stop,
            after_policy=after_policy,
            flush_s=settings.flush_s,
            capacity_bytes=float(cost.capacity_bytes),
            watch=watch,
            warn=warn,
        )

    def _hear(self, event: Event, job: Job, devices: tuple[int, ...], detail: str) -> None:
        self.host.hear(event, job, devices, detail)

    def _polled(self) -> None:
        """Let in the jobs whose rows are there; after that the policy is asked."""
        self.admission.turn()
        self.marker.set("decide")

    def _facts(self) -> dict[str, Any]:
        """Return the scheduler's own figures, which every commit writes down."""
        about = {"base_model": self.engine.base.name, "device": self.engine.device}
        figures = {**self.notes.facts(), **self.guard.facts(), **self.host.facts()}
        return {**about, **figures, "base_changed": self._base_watch.changed, "draining": self.desk.draining}

    @property
    def n_waiting(self) -> int:
        """Number of jobs that have come and are on no device.

        Those that are paused by a user or set aside are among them: they are what the waiting and
        paused times of the table add up to.
        """
        held = self.store.count(HELD, by_s=self.driver.now_s)
        return self.loop.cluster.n_waiting + len(self.quarantine) + len(self.admission) + held

    @property
    def _lasting(self) -> bool:
        """Whether something may still come: a job, a command, or memory that others have taken."""
        if (self._watched and self.loop.cluster.active) or len(self.admission):
            return True
        return not self.settings.exit_when_idle and not self.desk.draining

    # -- the process

    def play(self) -> Outcome:
        """Schedule until a signal, `drain`, or (with exit_when_idle) the end of every job."""
        self._recover()
        self.book.folder = watch_folder(self.store)
        self.marker.opened(self.book.folder.nodes, self.book.folder.mark)
        # a command holds the lock for milliseconds; who holds it longer shall not stop training
        self.store.be_patient(PLAY_S)
        with self._stops(self.driver.request_stop) as stopped:
            try:
                self.driver.run(self.loop, self.inbox, self.host)
            except FolderGone:
                # the files that this process has open are nobody's any more: write nothing more,
                # but into the marker that is open, for whoever finds it in a folder that was moved
                self.admission.close()
                self.marker.set("stopped")
                raise
            except LoramuxError:
                # the policy or the disk has ended the run
                self._close(stopped)
                raise
            # Anything else is a crash, or a second signal: the process ends at once, for what is in
            # memory may be half done, and the marker tells the next process whose step it was
            self._close(stopped)
        return Outcome.of([row["state"] for row in self.store.jobs()], stopped)

    def _recover(self) -> None:
        """Take up what a process before this one has left."""
        store = self.store
        self.desk.draining = bool(store.fact("draining")) and not self.suspects.ended_by_itself
        policy_hung = self.suspects.policy_hung
        take_up(store, self.suspects, policy=self.settings.policy, n_devices=self.engine.n_devices)
        self.saving.tidy({row["job_id"] for row in store.jobs(*OPEN)}, self._warn)
        self.quarantine.begin(store.jobs(QUEUED, WAITING))
        policy = self.loop.policy.name
        if policy_hung:
            error = PolicyError(f"policy {policy} was killed while it decided")
            if self.settings.on_policy_error == "exit":
                self.marker.set("stopped")
                raise error
            self.guard.excused(error)
            policy = self.loop.policy.name
        begins: Fields = {"event": "scheduler", "detail": f"policy {policy}"}
        if self._last_s is not None:
            begins["last_s"] = self._last_s
        self.book.note({"t_s": self._times.now_s(), **begins})

    def _close(self, stopped: Sequence[int]) -> None:
        """End the process: everything is on disk before the marker says so."""
        self.admission.close()
        try:
            write_at_end(
                self.store, self._write, stopped=stopped, alive=lambda: self.marker.set("idle"), warn=self._warn
            )
        finally:
            # where a disk is full, too, this process ends by itself, and no job is to blame
            self.marker.set("stopped")
        self.marker.close()

    def _write(self) -> None:
        for job_id, reason in self.saving.save_all():
            self._warn(f"{job_id}: {reason}")
        for device_id in range(self.engine.n_devices):
            self.book.sample(device_id, 0.0, 0, self.n_waiting)
        self.desk.flush()
        self.store.set_facts(draining=False)
        self.desk.tidy_rows()

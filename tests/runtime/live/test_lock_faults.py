"""Another process holds the queue's lock, or sets the clock: training goes on, nothing is lost."""

from __future__ import annotations

import sqlite3
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from loramux_runtime.jobs.jobs_file import TrainJob
from loramux_runtime.live import closing
from loramux_runtime.live import service as service_module
from loramux_runtime.live.drive import live_times
from loramux_runtime.live.drive.live_times import MonotonicTimes, first_reading
from loramux_runtime.live.inbox import LiveInbox
from loramux_runtime.live.state import moments
from loramux_runtime.live.state.moments import between_s, moment
from loramux_runtime.live.state.store import DATABASE
from loramux_runtime.live.watch.status import read_status
from loramux_runtime.train.faults import FaultPlan
from loramux_traces.errors import BusyError
from loramux_traces.locking import owned

from .asking import states
from .serving import curves, first, jobs, play, service, submit

DAY_S = 86400.0


class Holder:
    """Holds the queue's lock, as another process would."""

    def __init__(self, state: Path) -> None:
        self._db = sqlite3.connect(state / DATABASE, isolation_level=None, timeout=10)
        self.held = 0

    def take(self) -> None:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
            self.held += 1

    def give(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")


def test_training_goes_on_while_the_lock_is_held(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "PLAY_S", 0.01)
    store = submit(tmp_path / "state", jobs(tmp_path, 3))
    holder, steps, seen = Holder(store.folder), [0], []

    def fault(_: str, facts: dict[str, object]) -> None:
        steps[0] += 1
        if steps[0] == 3:
            holder.take()
        if steps[0] == 6:
            seen.append(read_status(store)["unsaved_s"])
            holder.give()

    said: list[str] = []
    play(store, "fifo", faults=FaultPlan(step=fault), warn=said.append, checkpoint_s=0.0)
    assert holder.held == 1 and seen[0] is not None and read_status(store)["unsaved_s"] is None
    assert "training goes on, nothing is committed" in said[0]
    assert curves(store) == first(whole, 3) and set(states(store).values()) == {"COMPLETED"}


def test_a_stop_while_the_lock_is_held_ends_it_and_loses_nothing(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "PLAY_S", 0.01)
    monkeypatch.setattr(closing, "CLOSE_S", 0.1)
    store = submit(tmp_path / "state", jobs(tmp_path, 3))
    holder = Holder(store.folder)
    stopped = [15]

    def fault(_: str, facts: dict[str, object]) -> None:
        holder.take()
        scheduler.driver.request_stop()

    said: list[str] = []
    with owned(store.folder):
        options = {"stops": lambda request: nullcontext(stopped)}
        scheduler = service(store, "fifo", faults=FaultPlan(step=fault), warn=said.append, options=options)
        assert scheduler.play().stopped_by == 15
    assert "is not saved, and will be done again" in said[-1]
    holder.give()
    play(store, "fifo")
    assert curves(store) == first(whole, 3) and set(states(store).values()) == {"COMPLETED"}


def test_the_end_of_all_jobs_waits_for_the_lock(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", [])
    holder, turns = Holder(store.folder), [0]
    holder.take()

    def still_locked() -> None:
        turns[0] += 1
        if turns[0] == 2:
            holder.give()

    store.wait_for_lock(still_locked)
    store.set_facts(policy="fifo")
    assert turns == [2] and store.fact("policy") == "fifo"
    # from then on as before
    store.be_patient(0.0)
    holder.take()
    with pytest.raises(BusyError, match="held the queue's lock for too long; nothing was changed"):
        store.set_facts(policy="las")
    holder.give()
    assert store.fact("policy") == "fifo"


@pytest.mark.parametrize("set_by_s", [DAY_S, -DAY_S])
def test_a_clock_that_is_set_changes_no_span(set_by_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    before = moment()
    real = time.time
    monkeypatch.setattr(moments.time, "time", lambda: real() + set_by_s)
    after = moment()
    if "boot" in before:
        assert between_s(before, after) < 100.0
    assert between_s({"unix_s": 5.0}, {"unix_s": 2.0}) == 0.0
    # of another boot only the wall clock knows
    assert between_s({"unix_s": 5.0, "boot": "a", "boot_s": 1.0}, {"unix_s": 9.0, "boot": "b", "boot_s": 99.0}) == 4.0
    # as older versions kept it
    assert first_reading(10.0, {"now_unix_s": 5.0}, {"unix_s": 8.0, "boot": "b", "boot_s": 1.0}) == 13.0


def test_the_schedulers_clock_never_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    times = MonotonicTimes()
    times.go_on_from(100.0)
    before_s, real = times.now_s(), time.monotonic
    monkeypatch.setattr(live_times.time, "monotonic", lambda: real() - DAY_S)
    after_s = times.now_s()
    assert 100.0 <= before_s <= after_s < before_s + 100.0
    assert times.now_s() >= after_s


@pytest.mark.parametrize("set_by_s", [DAY_S, -DAY_S])
def test_a_clock_that_is_set_between_two_runs(set_by_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job with a delay waits for it, and what --keep may delete is not a day older."""
    if "boot" not in moment():
        pytest.skip("no clock since boot here")
    store = submit(tmp_path / "state", jobs(tmp_path, 1, steps=2))
    play(store, "fifo")
    late = TrainJob.model_validate(jobs(tmp_path, 2, steps=2)[1])
    store.submit([(late.model_dump(mode="json"), tmp_path, 3600.0)])
    real = time.time
    monkeypatch.setattr(moments.time, "time", lambda: real() + set_by_s)
    assert read_status(store)["now_s"] < 1000.0
    row = store.job("job01")
    assert 3600.0 - 100.0 < LiveInbox._submitted_s(row, 10.0, moment()) <= 3610.0
    with owned(store.folder):
        scheduler = service(store, "fifo", keep_s=7200.0, exit_when_idle=False)
        scheduler.driver.request_stop()
        scheduler.play()
    assert states(store) == {"job00": "COMPLETED", "job01": "QUEUED"}

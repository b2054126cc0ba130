"""What a second outside review of the live scheduler found, each as it was reproduced."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from loramux_policies import Policy, register
from loramux_policies.errors import PolicyError
from loramux_policies.registry import _known
from loramux_policies.views import ClusterView, JobView, Order, Plan
from loramux_runtime.live import policy_guard, supervisor
from loramux_runtime.live.inbox import LiveInbox
from loramux_runtime.live.state import checkpoint
from loramux_runtime.live.state.marker import Marker, read_marker
from loramux_runtime.live.state.saving import Saving
from loramux_runtime.live.state.store import Store
from loramux_runtime.live.supervisor import supervise
from loramux_runtime.train.faults import FaultPlan
from loramux_traces.locking import owned

from .serving import Eager, curves, jobs, play, service, submit
from .test_commands import answers, at_steps, states


def dying(count: int) -> FaultPlan:
    """The process ends in its count-th step."""
    left = [count]

    def fault(_: str, facts: dict[str, object]) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise ValueError("a fault of ours")

    return FaultPlan(step=fault)


def test_a_death_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many starts end before they have begun."""
    store = submit(tmp_path / "state", jobs(tmp_path, 1, steps=8))
    with pytest.raises(ValueError, match="a fault of ours"):
        play(store, "fifo", faults=dying(4))

    def killed(*_: object) -> None:
        raise ValueError("no further than here")

    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(Saving, "tidy", killed)
            with pytest.raises(ValueError, match="no further"):
                play(store, "fifo")
        assert store.job("job00")["crashes"] == 1
    assert play(store, "fifo").failed == 0


def test_a_job_that_has_ended_is_not_blamed(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 1, steps=2))
    play(store, "fifo")
    marker = Marker(store.folder)
    marker.set("step", {"job00": 1.0})
    marker.close()
    play(store, "fifo")
    assert store.job("job00")["crashes"] == 0 and states(store) == {"job00": "COMPLETED"}


def test_checkpoints_that_cannot_be_read_now_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk, or files of another user after a restore: not a job that begins again."""
    found = jobs(tmp_path, 1, steps=12)
    whole = submit(tmp_path / "whole", found)
    play(whole, "fifo")
    store = submit(tmp_path / "state", found)
    left = [6]
    with owned(store.folder):
        scheduler = service(store, "fifo", faults=FaultPlan(step=lambda *_: stop_at(left, scheduler)))
        scheduler.play()
    kept = sorted(path.name for path in (store.folder / "checkpoints" / "job00").iterdir())
    real = Path.open

    def failing(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "manifest.json" and "checkpoints" in self.parts:
            raise OSError(5, "Input/output error")
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        play(store, "fifo")
    assert states(store) == {"job00": "HELD"} and "Input/output error" in store.job("job00")["reason"]
    assert sorted(path.name for path in (store.folder / "checkpoints" / "job00").iterdir()) == kept
    store.command("resume", "job00")
    play(store, "fifo")
    assert states(store) == {"job00": "COMPLETED"} and curves(store) == curves(whole)


def stop_at(left: list[int], scheduler: Any) -> None:
    """Ask for an end when the last is used up."""
    left[0] -= 1
    if left[0] == 0:
        scheduler.driver.request_stop()


def test_an_error_of_the_disk_in_mid_read_ends_the_process_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loramux_runtime.live.state import checkpoint_files
    from loramux_traces.errors import StateError

    store = submit(tmp_path / "state", jobs(tmp_path, 1, steps=12))
    left = [6]
    with owned(store.folder):
        scheduler = service(store, "fifo", faults=FaultPlan(step=lambda *_: stop_at(left, scheduler)))
        scheduler.play()
    step, n = store.job("job00")["step"], len(store.records("job00"))
    real = os.open

    def failing(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("tensors.safetensors"):
            raise OSError(5, "Input/output error")
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files.os, "open", failing)
        with pytest.raises(StateError, match="Input/output error"):
            play(store, "fifo")
    assert (store.job("job00")["step"], len(store.records("job00"))) == (step, n)
    play(store, "fifo")
    assert states(store) == {"job00": "COMPLETED"}


def test_a_job_that_comes_twice_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Submitted, paused and resumed between the reading of the jobs and that of the commands."""
    found = jobs(tmp_path, 3, steps=3)
    store = submit(tmp_path / "state", found[:2])
    real, done = LiveInbox.poll, []

    def poll(self: LiveInbox, now_s: float) -> None:
        real(self, now_s)
        if not done:
            done.append(1)
            submit(tmp_path / "state", found[2:]).close()
            self._read_jobs(now_s)
            self.put(store.job("job02"), now_s)

    monkeypatch.setattr(LiveInbox, "poll", poll)
    play(store, "fifo")
    assert set(states(store).values()) == {"COMPLETED"}
    assert [e["event"] for e in store.events() if e.get("job_id") == "job02"] == ["arrive", "start", "finish"]


def test_many_jobs_are_read_in_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(Three thousand took 11 s, one fsync each.)"""
    store = submit(tmp_path / "state", [])
    inbox = LiveInbox(store, due=lambda row: None, obey=lambda row: None, lasting=lambda: False)
    submit(tmp_path / "state", jobs(tmp_path, 30)).close()
    commits: list[str] = []
    store._db.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
    inbox.poll(1.0)
    assert len(commits) == 1 and all(row["submit_s"] is not None for row in store.jobs())


def test_a_checkpoint_that_cannot_be_deleted_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 3, steps=4))
    real = checkpoint._delete

    def delete(path: Path) -> None:
        if path.name == "job00":
            raise OSError(16, "Device or resource busy")
        real(path)

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_delete", delete)
        play(store, "exclusive", warn=said.append)
        play(store, "exclusive", warn=said.append)
    assert set(states(store).values()) == {"COMPLETED"} and "cannot be removed" in said[0]
    play(store, "exclusive")
    assert not (store.folder / "checkpoints" / "job00").exists()


class Later(Policy):
    """Starts nothing, and wants to be asked in eleven days."""

    name = "later"

    def place(self, view: ClusterView) -> Plan:
        plan = view.plan()
        plan.review_at(view.now_s + 1e6)
        return plan


def test_a_policy_that_wants_to_be_asked_much_later_is_a_stall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_guard, "STALL_S", 0.3)
    store = submit(tmp_path / "state", jobs(tmp_path, 1, steps=2))
    with owned(store.folder):
        scheduler = service(store, Later())
        stop = threading.Timer(30.0, scheduler.driver.request_stop)
        stop.start()
        scheduler.play()
        stop.cancel()
    assert states(store) == {"job00": "COMPLETED"}
    assert any("starts nothing" in event.get("detail", "") for event in store.events())


def test_a_hang_ends_the_scheduler_where_that_is_asked_for(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 1, steps=2))
    marker = Marker(store.folder)
    marker.set("decide")
    marker.close()
    store.set_facts(hung_in_decide=True)
    with pytest.raises(PolicyError, match="killed while it decided"):
        play(store, "aspen", on_policy_error="exit")
    play(store, "aspen", on_policy_error="exit")  # the next one is not told of it again
    assert states(store) == {"job00": "COMPLETED"}


def test_a_process_that_never_begins_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RESTARTS", 1)
    monkeypatch.setattr(supervisor, "START_S", 0.2)
    said: list[str] = []
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    assert supervise(command, tmp_path, hang_s=0.1, say=said.append, poll_s=0.02) == 1
    assert said[0].startswith("nothing has begun in 0 s") and "giving up" in said[-1]


def test_a_second_ask_is_the_policys(tmp_path: Path) -> None:
    """A policy that hangs when it is asked again in the same decision is not a job that hangs."""
    store = submit(tmp_path / "state", jobs(tmp_path, 3, steps=2))
    phases = []

    class Second(Policy):
        name = "second"

        def place(self, view: ClusterView) -> Plan:
            doing = read_marker(store.folder)
            assert doing is not None
            phases.append((len(list(view.residents(0))), doing.phase))
            plan = view.plan()
            for job in view.waiting(1):
                plan.start_first(job.job_id)
            return plan

    play(store, Second())
    assert (1, "decide") in phases and {phase for _, phase in phases} == {"decide"}


def test_a_job_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 2, steps=6))
    steps = [0]

    def out_of_memory(_: str, facts: dict[str, object]) -> None:
        if "job00" in facts["job_ids"]:  # type: ignore[operator]
            steps[0] += 1
            if steps[0] > 3:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: injected")

    with owned(store.folder):
        scheduler = service(store, "exclusive", faults=FaultPlan(step=out_of_memory))
        scheduler.play()
    assert states(store) == {"job00": "FAILED_OOM", "job01": "COMPLETED"}
    held = (scheduler.training, scheduler.roster._prepared, scheduler.book._attained_s, scheduler.notes._bounds)
    assert not any(held) and not list((store.folder / "checkpoints").glob("*/*"))


def test_commands_behind_one_that_ends_a_policy_are_carried_out(tmp_path: Path) -> None:
    broken = [False]

    def key(job: JobView) -> tuple[Any, ...]:
        if broken[0]:
            raise ZeroDivisionError("order")
        return (job.submit_s,)

    def worse(job: JobView) -> tuple[Any, ...]:
        raise ZeroDivisionError("order")

    class Turns(Eager):
        name = "turns"
        order = Order(key=key)

    class Worse(Policy):
        order = Order(key=worse)

        def place(self, view: ClusterView) -> Plan:
            return view.plan()

    def ask(other: Store) -> None:
        broken[0] = True
        other.command("policy", "", "worse-order")
        other.command("pause", "job01")

    register("worse-order")(Worse)
    try:
        store = submit(tmp_path / "state", jobs(tmp_path, 2, steps=30))
        play(store, Turns(), faults=at_steps(store.folder, {4: ask}))
    finally:
        del _known["worse-order"]
    assert states(store) == {"job00": "COMPLETED", "job01": "HELD"} and not store.open_commands()


def test_what_was_rejected_is_looked_at_again_when_it_is_mended(tmp_path: Path) -> None:
    found = jobs(tmp_path, 2, steps=2)
    found[1]["data"] = {"path": str(tmp_path / "later.jsonl")}
    store = submit(tmp_path / "state", found)
    play(store, "fifo")
    assert states(store) == {"job00": "COMPLETED", "job01": "REJECTED"}
    shutil.copy(tmp_path / "rows.jsonl", tmp_path / "later.jsonl")
    store.command("resume", "job01")
    store.command("resume", "job00")
    play(store, "fifo")
    assert states(store)["job01"] == "COMPLETED"
    assert [refused for _, refused in answers(store)] == ["", "job00 has ended already: COMPLETED"]


def test_data_may_change_until_a_job_begins(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 2, steps=3))
    with owned(store.folder):
        scheduler = service(store, "exclusive", faults=FaultPlan(step=lambda *_: scheduler.driver.request_stop()))
        scheduler.play()
    assert store.job("job01")["start_s"] is None and store.job("job01")["data_sha256"]
    rows = [{"text": f"other rows {i}"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    play(store, "exclusive")
    assert states(store) == {"job00": "FAILED_DATA", "job01": "COMPLETED"}


def test_out_of_memory_in_an_evaluation_scores_fewer_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loramux_runtime.fused.model import FusedModel

    found = jobs(tmp_path, 1, steps=3)
    whole = submit(tmp_path / "whole", found)
    play(whole, "fifo")
    real, sizes = FusedModel.score, []

    def score(self: FusedModel, adapter: Any, batch: Any) -> Any:
        sizes.append(len(batch.tokens))
        if len(batch.tokens) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return real(self, adapter, batch)

    monkeypatch.setattr(FusedModel, "score", score)
    store = submit(tmp_path / "state", found)
    play(store, "fifo")
    assert max(sizes) == 4 and states(store) == {"job00": "COMPLETED"}
    last, expected = (run["job00"][-1]["eval_loss"] for run in (curves(store), curves(whole)))
    assert last == pytest.approx(expected, rel=1e-5)


def test_counts_and_times_agree_when_jobs_are_paused(tmp_path: Path) -> None:
    """Little's law: a job that its user has paused is waiting in both."""
    from loramux_analysis.metrics import littles_law
    from loramux_runtime.live.state.run_folder import write_results
    from loramux_traces.runfolder import read_run

    store = submit(tmp_path / "state", jobs(tmp_path, 4, steps=12))
    asks = {
        2: lambda other: other.command("pause", "job02"),
        4: lambda other: other.command("pause", "job00"),
        16: lambda other: other.command("resume", "job00"),
        20: lambda other: other.command("resume", "job02"),
    }
    play(store, "exclusive", faults=at_steps(store.folder, asks))
    assert set(states(store).values()) == {"COMPLETED"}
    write_results(store, {"policy": "exclusive"})
    queue, devices = littles_law(read_run(store.folder))
    assert queue.gap < 0.05 and devices.gap < 0.05, (queue, devices)

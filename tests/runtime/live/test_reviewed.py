"""What an outside review of the live scheduler found, each as it was reproduced."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from loramux_policies import Policy, register
from loramux_policies.errors import PolicyError
from loramux_policies.registry import _known
from loramux_policies.views import ClusterView, JobView, Order, Plan
from loramux_runtime.live import policy_guard
from loramux_runtime.live.state.marker import Marker
from loramux_runtime.live.state.run_folder import job_table
from loramux_runtime.live.state.store import Store
from loramux_runtime.live.supervisor import supervise
from loramux_runtime.live.watch.status import read_status
from loramux_runtime.train.faults import FaultPlan
from loramux_traces.locking import owned

from . import serving
from .serving import curves, jobs, play, service, submit
from .test_commands import Ask, answers, at_steps, states


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    store = submit(folder / "state", jobs(folder, 3))
    play(store, "fifo")
    return curves(store)


def test_a_job_is_not_done_before_its_adapter_is_written(tmp_path: Path, whole: dict[str, Any]) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 3))
    (store.folder / "adapters").write_text("in the way")
    play(store, "fifo")
    assert set(states(store).values()) == {"HELD"}
    assert "cannot be written" in store.job("job00")["reason"] and store.job("job00")["finish_s"] is None
    (store.folder / "adapters").unlink()
    for job_id in whole:
        store.command("resume", job_id)
    play(store, "fifo")
    assert set(states(store).values()) == {"COMPLETED"}
    assert curves(store) == whole
    assert sorted(path.name for path in (store.folder / "adapters").iterdir()) == sorted(whole)


def test_an_error_in_a_step_is_a_death_of_its_jobs(tmp_path: Path, whole: dict[str, Any]) -> None:
    def fail(_: str, facts: dict[str, object]) -> None:
        if "job01" in facts["job_ids"]:  # type: ignore[operator]
            raise ValueError("a fault of ours")

    store = submit(tmp_path / "state", jobs(tmp_path, 3))
    for _ in range(3):
        with pytest.raises(ValueError, match="a fault of ours"):
            play(store, "fifo", faults=FaultPlan(step=fail))
    assert play(store, "fifo", faults=FaultPlan(step=fail)).failed == 1
    assert states(store) == {"job00": "COMPLETED", "job01": "FAILED_CRASHED", "job02": "COMPLETED"}
    assert {k: v for k, v in curves(store).items() if k != "job01"} == {k: v for k, v in whole.items() if k != "job01"}


def test_a_policy_that_hangs_is_killed_and_replaced(tmp_path: Path, whole: dict[str, Any]) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 3))
    order = {"state": str(tmp_path / "state"), "sleepy": True}
    said: list[str] = []
    command = [sys.executable, serving.__file__, json.dumps(order)]
    assert supervise(command, tmp_path / "state", hang_s=3.0, say=said.append, poll_s=0.0005) == 0
    assert "no sign of life for 3 s (the policy was deciding)" in said[0] and len(said) == 2
    assert curves(store) == whole
    assert all(row["crashes"] == 0 for row in store.jobs())


class Nothing(Policy):
    """Starts nothing."""

    name = "nothing"

    def place(self, view: ClusterView) -> Plan:
        return view.plan()


def test_a_stall_ends_the_scheduler_where_that_is_asked_for(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 1))
    options = {"watch": lambda now_s: None}
    with pytest.raises(PolicyError, match="nothing starts nothing"):
        play(store, Nothing(), on_policy_error="exit", options=options)
    assert states(store) == {"job00": "WAITING"}


def test_a_policy_that_was_refused_is_not_in_charge(tmp_path: Path, whole: dict[str, Any]) -> None:
    def broken(job: JobView) -> tuple[Any, ...]:
        raise ZeroDivisionError("order")

    class Broken(Policy):
        order = Order(key=broken)

    register("broken-order")(Broken)
    try:
        store = submit(tmp_path / "state", jobs(tmp_path, 3))
        asks: dict[int, Ask] = {3: lambda other: other.command("policy", "", "broken-order")}
        play(store, "exclusive", faults=at_steps(store.folder, asks))
    finally:
        del _known["broken-order"]
    assert "exclusive stays" in answers(store)[0][1]
    assert curves(store) == whole
    assert not any(event["event"] in ("policy", "policy-error") for event in store.events())


def test_a_drain_outlives_a_killed_process(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 2))
    store.set_facts(draining=True)
    marker = Marker(store.folder)
    marker.set("step", {})
    marker.close()
    play(store, "fifo", exit_when_idle=False)
    assert set(states(store).values()) == {"QUEUED"}
    play(store, "fifo")  # and it has drained: the next one is a new one
    assert set(states(store).values()) == {"COMPLETED"}


def stop_after(store: Store, steps: int) -> None:
    """A scheduler that is stopped from outside after so many steps."""
    done = [0]

    def stop(_: str, facts: dict[str, object]) -> None:
        done[0] += 1
        if done[0] == steps:
            scheduler.driver.request_stop()

    with owned(store.folder):
        scheduler = service(store, "fifo", faults=FaultPlan(step=stop))
        scheduler.play()


def test_a_disk_that_is_not_there_costs_no_job(tmp_path: Path, whole: dict[str, Any]) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 3))
    stop_after(store, 4)
    rows = tmp_path / "rows.jsonl"
    rows.rename(tmp_path / "unmounted")
    play(store, "fifo")
    assert set(states(store).values()) == {"HELD"}
    assert "cannot be read any more" in store.job("job01")["reason"]
    play(store, "fifo")
    assert sorted(path.name for path in (store.folder / "checkpoints").iterdir()) == sorted(whole)
    (tmp_path / "unmounted").rename(rows)
    for job_id in whole:
        store.command("resume", job_id)
    play(store, "fifo")
    assert curves(store) == whole


def test_a_job_that_is_resumed_before_its_time_waits_for_it(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 2), at_s=[0.0, 0.6])
    asks: dict[int, Ask] = {
        2: lambda other: [other.command("pause", "job01"), other.command("resume", "job01")],
    }
    play(store, "fifo", faults=at_steps(store.folder, asks))
    table = job_table(store.jobs(), "")
    assert (table["waiting_time"] >= 0).all() and (table["turnaround_time"] > 0).all()
    assert store.job("job01")["start_s"] >= 0.6


def test_a_device_emptied_by_a_full_disk_is_no_stall(tmp_path: Path) -> None:
    def no_space(_: str, facts: dict[str, object]) -> None:
        if facts["job_id"] == "job00" and facts["stage"] == "state":
            raise OSError(28, "No space left on device")

    store = submit(tmp_path / "state", jobs(tmp_path, 3))
    play(store, "srtf", max_resident=1.0, checkpoint_s=0.0, faults=FaultPlan(checkpoint=no_space))
    assert states(store) == {"job00": "HELD", "job01": "COMPLETED", "job02": "COMPLETED"}
    assert not any(event["event"] == "policy-error" for event in store.events())


class Later(Policy):
    """Begins nothing in the first tenth of a second after something comes."""

    name = "later"

    def place(self, view: ClusterView) -> Plan:
        plan = view.plan()
        for job in view.waiting(view.n_waiting):
            if view.now_s < job.submit_s + 0.1:
                plan.review_at(job.submit_s + 0.1)
            else:
                plan.start_first(job.job_id)
        return plan


def test_a_policy_may_begin_late_after_an_idle_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_guard, "STALL_S", 0.3)
    store = submit(tmp_path / "state", jobs(tmp_path, 2, steps=1), at_s=[0.0, 1.5])
    play(store, Later())
    assert set(states(store).values()) == {"COMPLETED"}
    assert not any(event["event"] == "policy-error" for event in store.events())


def test_service_is_not_lost_at_a_restart(tmp_path: Path) -> None:
    stopped = submit(tmp_path / "stopped", jobs(tmp_path, 1, steps=12))
    stop_after(stopped, 7)
    play(stopped, "fifo")
    straight = submit(tmp_path / "straight", jobs(tmp_path, 1, steps=12))
    play(straight, "fifo")
    assert stopped.job("job00")["attained_s"] == pytest.approx(straight.job("job00")["attained_s"], rel=1e-9)


def test_nobody_is_busy_between_two_processes(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 1, steps=12))
    stop_after(store, 5)
    last = [residents for _, _, _, residents, _ in store.samples()][-1]
    assert last == 0


def test_a_cancelled_device_is_empty_and_its_job_has_an_end(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 2), at_s=[0.0, 1.0])
    seen: list[dict[str, Any]] = []
    asks: dict[int, Ask] = {
        3: lambda other: other.command("cancel", "job00"),
        4: lambda other: seen.append(read_status(other)),
    }
    play(store, "fifo", faults=at_steps(store.folder, asks), flush_s=100.0)
    assert seen[0]["resident"] == 1 and seen[0]["jobs"][0]["state"] == "CANCELLED"
    store = submit(tmp_path / "held", jobs(tmp_path, 1))
    play(store, "fifo", faults=at_steps(store.folder, {3: lambda other: other.command("pause", "job00")}))
    store.command("cancel", "job00")
    play(store, "fifo")
    row = store.job("job00")
    assert row["state"] == "CANCELLED" and row["finish_s"] is not None and row["expected_finish_s"] is None
    assert [event["event"] for event in store.events() if event.get("job_id") == "job00"][-1] == "cancel"


def test_a_name_that_is_no_text_is_no_job(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", [])
    for name in ("\udcff", "a\x1b[31m", "ä"):
        with pytest.raises(Exception, match="no job is called"):
            store.job(name)

"""What users ask of a running scheduler, asked at a given step from another connection."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from loramux_policies import Policy, register
from loramux_policies.registry import _known
from loramux_policies.views import ClusterView, JobView, Order, Plan
from loramux_runtime.jobs.adapter_files import read_adapter_config
from loramux_runtime.live.state.store import Store
from loramux_runtime.live.watch.status import read_status
from loramux_traces.errors import StateError
from loramux_traces.locking import owned

from .asking import Ask, answers, at_steps, states
from .serving import Eager, curves, first, jobs, play, service, submit


def test_cancel(tmp_path: Path, whole: dict[str, Any]) -> None:
    """A running, a waiting and a coming job."""
    found = jobs(tmp_path, 4)
    store = submit(tmp_path / "state", found, at_s=[0.0, 0.0, 0.0, 1e6])
    asks: dict[int, Ask] = {
        3: lambda other: [other.command("cancel", job_id) for job_id in ("job00", "job02", "job03")],
        5: lambda other: other.command("cancel", "job00"),
    }
    play(store, "exclusive", faults=at_steps(store.folder, asks))
    assert states(store) == {"job00": "CANCELLED", "job01": "COMPLETED", "job02": "CANCELLED", "job03": "CANCELLED"}
    assert curves(store)["job01"] == whole["job01"]
    assert answers(store)[0] == ("job00 is cancelled", "")
    assert answers(store)[3] == ("", "job00 has ended already: CANCELLED")
    assert not list((store.folder / "checkpoints").glob("*/*"))


def test_pause_and_resume_change_no_bits(tmp_path: Path, whole: dict[str, Any]) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 4))
    asks: dict[int, Ask] = {
        3: lambda other: other.command("pause", "job01"),
        4: lambda other: other.command("pause", "job01"),
        6: lambda other: [other.command("resume", "job01"), other.command("resume", "job02")],
    }
    play(store, "fifo", faults=at_steps(store.folder, asks))
    assert set(states(store).values()) == {"COMPLETED"}
    assert curves(store) == first(whole, 4)
    assert answers(store) == [
        ("job01 is paused", ""),
        ("", "job01 is paused already"),
        ("job01 goes on", ""),
        ("", "job02 is not paused"),
    ]
    assert store.job("job01")["paused_s"] > 0.0


def test_a_paused_job_outlives_the_scheduler(tmp_path: Path, whole: dict[str, Any]) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 4))
    play(store, "fifo", faults=at_steps(store.folder, {4: lambda other: other.command("pause", "job03")}))
    assert states(store)["job03"] == "HELD"
    play(store, "fifo")  # nothing to do
    assert states(store)["job03"] == "HELD"
    store.command("resume", "job03")
    play(store, "fifo")
    assert states(store)["job03"] == "COMPLETED"
    assert curves(store) == first(whole, 4)


def test_drain_begins_nothing(tmp_path: Path, whole: dict[str, Any]) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 4))
    asks: dict[int, Ask] = {3: lambda other: other.command("drain")}
    play(store, "fifo", max_resident=2.0, exit_when_idle=False, faults=at_steps(store.folder, asks))
    assert sorted(states(store).values()) == ["COMPLETED", "COMPLETED", "QUEUED", "QUEUED"]
    play(store, "fifo")
    assert curves(store) == first(whole, 4)


def test_another_policy_at_a_step_boundary(tmp_path: Path, whole: dict[str, Any]) -> None:
    """From a policy that keeps the device to one job to one that fuses, and back.

    Seats are given up.
    """
    store = submit(tmp_path / "state", jobs(tmp_path, 4))
    asks: dict[int, Ask] = {
        3: lambda other: other.command("policy", "", "fifo"),
        6: lambda other: other.command("policy", "", "exclusive"),
        7: lambda other: other.command("policy", "", "no-such-policy"),
    }
    play(store, "exclusive", faults=at_steps(store.folder, asks))
    assert curves(store) == first(whole, 4)
    assert "no policy is called" in answers(store)[2][1]
    events = list(store.events())
    running: set[str] = set()
    most = {"exclusive": 0, "fifo": 0}
    policy = "exclusive"
    for event in events:
        if event["event"] == "policy":
            policy = event["detail"]
        elif event["event"] in ("start", "resume"):
            running.add(event["job_id"])
        elif event["event"] in ("pause", "finish"):
            running.discard(event["job_id"])
        if policy in most and event["event"] == "start":
            most[policy] = max(most[policy], len(running))
    assert most["exclusive"] == 1 and most["fifo"] > 1
    assert any(event["event"] == "pause" and "no seat" in event.get("detail", "") for event in events)


def test_export_of_a_running_job(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 2))
    target = tmp_path / "now"
    asks: dict[int, Ask] = {4: lambda other: other.command("export", "job00", str(target))}
    play(store, "fifo", faults=at_steps(store.folder, asks))
    assert read_adapter_config(target)[0] == "lora"
    assert read_adapter_config(store.folder / "adapters" / "job01")[0] == "mixlora"


def test_two_schedulers(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 1))
    with owned(store.folder), pytest.raises(StateError, match=r"process \d+ is writing"):
        play(store, "fifo")


def test_status_says_why_a_job_waits(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 4))
    seen: list[dict[str, Any]] = []
    with owned(store.folder):
        plan = at_steps(store.folder, {6: lambda other: seen.append(read_status(other))})
        service(store, "fifo", faults=plan, max_resident=2.0, flush_s=0.0).play()
    (status,) = seen
    found = {job["job_id"]: job for job in status["jobs"]}
    assert status["running"] and status["resident"] == 2 and status["waiting"] == 2
    assert [found[name]["state"] for name in sorted(found)] == ["RUNNING", "RUNNING", "WAITING", "WAITING"]
    assert found["job02"]["why"] == "every seat is taken; it is first in the queue"
    assert found["job03"]["why"].endswith("; 1 job is before it in the queue")
    first = found["job00"]
    assert first["step"] > 0 and first["loss"] > 0 and first["predicted_bytes"] > 0
    assert first["expected_finish_s"] > status["now_s"] - 60
    after = read_status(store)
    assert not after["running"] and {job["state"] for job in after["jobs"]} == {"COMPLETED"}


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

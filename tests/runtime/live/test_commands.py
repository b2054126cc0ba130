"""What users ask of a running scheduler, asked at a given step from another connection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loramux_runtime.jobs.adapter_files import read_adapter_config
from loramux_runtime.live.state.store import Store
from loramux_runtime.live.supervisor import supervise  # noqa: F401  (imports without torch)
from loramux_runtime.live.watch.status import read_status
from loramux_runtime.train.faults import FaultPlan
from loramux_traces.errors import StateError, UsageError
from loramux_traces.locking import owned

from .serving import curves, jobs, play, service, submit

Ask = Callable[[Store], object]


def at_steps(state: Path, asks: dict[int, Ask]) -> FaultPlan:
    """Calls with a connection of its own before the n-th fused step."""
    done = [0]

    def fault(_: str, facts: dict[str, object]) -> None:
        done[0] += 1
        if done[0] in asks:
            other = Store(state)
            asks[done[0]](other)
            other.close()

    return FaultPlan(step=fault)


def states(store: Store) -> dict[str, str]:
    return {row["job_id"]: row["state"] for row in store.jobs()}


def answers(store: Store) -> list[tuple[str, str]]:
    rows = [store.answered(number) for number in range(1, 10)]
    return [(row["answer"], row["refused"]) for row in rows if row is not None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    store = submit(folder / "state", jobs(folder, 4))
    play(store, "fifo")
    return curves(store)


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
    assert curves(store) == whole
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
    assert curves(store) == whole


def test_drain_begins_nothing(tmp_path: Path, whole: dict[str, Any]) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 4))
    asks: dict[int, Ask] = {3: lambda other: other.command("drain")}
    play(store, "fifo", max_resident=2.0, exit_when_idle=False, faults=at_steps(store.folder, asks))
    assert sorted(states(store).values()) == ["COMPLETED", "COMPLETED", "QUEUED", "QUEUED"]
    play(store, "fifo")
    assert curves(store) == whole


def test_another_policy_at_a_step_boundary(tmp_path: Path, whole: dict[str, Any]) -> None:
    """From a policy that keeps the device to one job to one that fuses, and back: seats are given up."""
    store = submit(tmp_path / "state", jobs(tmp_path, 4))
    asks: dict[int, Ask] = {
        3: lambda other: other.command("policy", "", "fifo"),
        6: lambda other: other.command("policy", "", "exclusive"),
        7: lambda other: other.command("policy", "", "no-such-policy"),
    }
    play(store, "exclusive", faults=at_steps(store.folder, asks))
    assert curves(store) == whole
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


def test_jobs_that_come_later(tmp_path: Path, whole: dict[str, Any]) -> None:
    found = jobs(tmp_path, 4)
    store = submit(tmp_path / "state", found[:2])
    asks: dict[int, Ask] = {3: lambda other: submit(tmp_path / "state", found[2:])}
    play(store, "fifo", faults=at_steps(store.folder, asks))
    assert curves(store) == whole
    times = {row["job_id"]: row for row in store.jobs()}
    assert times["job02"]["submit_s"] == times["job03"]["submit_s"] > times["job00"]["submit_s"]


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    found = jobs(tmp_path, 2)
    store = submit(tmp_path / "state", found[:1])
    with pytest.raises(UsageError, match="job00: there is a job of that name already"):
        submit(tmp_path / "state", found[::-1])
    assert [row["job_id"] for row in store.jobs()] == ["job00"]  # all or none


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

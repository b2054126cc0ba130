"""Jobs that the scheduler died with run alone, first, and no longer than they must.

Nobody waits without a reason.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loramux_policies.views import JobView, Order
from loramux_runtime.live.state.store import Store
from loramux_runtime.live.watch.status import read_status
from loramux_runtime.train.faults import FaultPlan
from loramux_traces.errors import StateError
from loramux_traces.locking import owned

from .asking import answers, states
from .serving import Eager, curves, jobs, play, service, submit


def dying_with(job_id: str) -> FaultPlan:
    """Every step with that job ends the process."""

    def fault(_: str, facts: dict[str, object]) -> None:
        if job_id in facts["job_ids"]:  # type: ignore[operator]
            raise ValueError("a fault of ours")

    return FaultPlan(step=fault)


def twice_dead(folder: Path, found: list[dict[str, Any]], n: int) -> Store:
    """A scheduler that has died twice in the first step of the first `n` jobs together.

    The others came since.
    """
    store = submit(folder / "state", found[:n])
    for _ in range(2):
        with pytest.raises(ValueError, match="a fault of ours"):
            play(store, "fifo", faults=dying_with(found[0]["id"]))
    # the second is counted at the next start
    assert [row["crashes"] for row in store.jobs()] == [1] * n
    submit(folder / "state", found[n:]).close()
    return store


def watched(seen: list[tuple[str, ...]], look: Callable[[], None] = lambda: None) -> FaultPlan:
    """Notes who is in each step."""

    def fault(_: str, facts: dict[str, object]) -> None:
        seen.append(facts["job_ids"])  # type: ignore[arg-type]
        look()

    return FaultPlan(step=fault)


def test_suspects_run_alone_until_they_are_past_the_step_and_then_together(tmp_path: Path) -> None:
    found = jobs(tmp_path, 4)
    whole = submit(tmp_path / "whole", found)
    play(whole, "fifo")
    store = twice_dead(tmp_path, found, 3)
    seen: list[tuple[str, ...]] = []
    reasons: list[dict[str, str]] = []
    look = lambda: reasons.append({job["job_id"]: job["why"] for job in read_status(store)["jobs"]})
    play(store, "fifo", faults=watched(seen, look))
    together = next(i for i, names in enumerate(seen) if len(names) > 1)
    assert set(seen[:together]) == {("job00",), ("job01",), ("job02",)}
    assert together < 8 and set(seen[together]) == {"job00", "job01", "job02", "job03"}
    assert reasons[0]["job03"] == "jobs that the scheduler died with run alone first: job00, job01, job02"
    assert reasons[0]["job01"] == "runs alone: the scheduler died in its steps"
    assert set(states(store).values()) == {"COMPLETED"}
    assert curves(store) == curves(whole)


def test_a_suspect_that_is_cancelled_or_paused_keeps_nobody_waiting(tmp_path: Path) -> None:
    found = jobs(tmp_path, 4)
    store = twice_dead(tmp_path, found, 3)
    for verb, job_id in (("cancel", "job00"), ("pause", "job01"), ("cancel", "job02")):
        store.command(verb, job_id)
    play(store, "fifo")
    assert states(store) == {"job00": "CANCELLED", "job01": "HELD", "job02": "CANCELLED", "job03": "COMPLETED"}
    store.command("resume", "job01")
    play(store, "fifo")
    assert states(store)["job01"] == "COMPLETED"


def test_a_drain_finishes_begun_jobs_that_are_set_aside(tmp_path: Path) -> None:
    found = jobs(tmp_path, 4)
    store = twice_dead(tmp_path, found, 3)
    store.command("drain")
    play(store, "fifo", exit_when_idle=False)
    assert states(store) == {"job00": "COMPLETED", "job01": "COMPLETED", "job02": "COMPLETED", "job03": "QUEUED"}
    assert store.job("job03")["why"] == "the scheduler is draining"
    play(store, "fifo")
    assert states(store)["job03"] == "COMPLETED"


def test_a_drain_says_so_to_those_that_wait_for_a_suspect(tmp_path: Path) -> None:
    found = jobs(tmp_path, 4)
    store = twice_dead(tmp_path, found, 3)
    seen: list[tuple[str, ...]] = []
    drain = lambda: None if len(seen) != 1 else Store(store.folder).command("drain") and None
    play(store, "fifo", faults=watched(seen, drain), exit_when_idle=False)
    assert store.job("job03")["why"] == "the scheduler is draining" and states(store)["job03"] == "QUEUED"
    assert [states(store)[name] for name in ("job00", "job01", "job02")] == ["COMPLETED"] * 3


def test_what_an_answer_could_not_commit_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk at the commit that answers a command.

    What was learned before it is written by the next one.
    """
    found = jobs(tmp_path, 2)
    whole = submit(tmp_path / "whole", found)
    play(whole, "fifo")
    store = submit(tmp_path / "state", found)
    left = [1]

    def answer(self: Store, number: int, answer: str = "", *, refused: str = "") -> None:
        if left and left.pop():
            with self.errors():
                raise sqlite3.OperationalError("database or disk is full")
        real(self, number, answer, refused=refused)

    real = Store.answer
    monkeypatch.setattr(Store, "answer", answer)
    seen: list[tuple[str, ...]] = []
    ask = lambda: None if len(seen) != 3 else Store(store.folder).command("policy", "", "srtf") and None
    with owned(store.folder), pytest.raises(StateError, match="disk is full"):
        service(store, "fifo", faults=watched(seen, ask), flush_s=60.0, checkpoint_s=60.0).play()
    begun = {job_id: len(records) for job_id, records in curves(store).items()}
    assert max(begun.values()) >= 2  # not those since the last commit only
    play(store, "fifo")
    assert curves(store) == curves(whole)
    assert answers(store) == [("the policy is srtf now", "")]


def test_a_policy_that_fails_on_one_strands_nobody(tmp_path: Path) -> None:
    """The others that were set aside come in too, before whoever is submitted later."""
    found = jobs(tmp_path, 4)
    store = twice_dead(tmp_path, found, 1)

    def key(job: JobView) -> tuple[Any, ...]:
        if job.job_id == "job01":
            raise ZeroDivisionError("order")
        return (job.submit_s,)

    class Picky(Eager):
        name = "picky"
        order = Order(key=key)

    seen: list[tuple[str, ...]] = []
    late = [dict(found[0], id=f"late{i}") for i in range(3)]
    come = lambda: submit(tmp_path / "state", late).close() if len(seen) == 5 else None
    play(store, Picky(), max_resident=2, faults=watched(seen, come))
    assert set(states(store).values()) == {"COMPLETED"}
    assert any(event["event"] == "policy-error" for event in store.events())
    first = {name: next(i for i, names in enumerate(seen) if name in names) for name in states(store)}
    assert max(first["job01"], first["job02"], first["job03"]) < min(first[job["id"]] for job in late)


def test_who_is_set_aside_or_paused_is_counted_as_waiting(tmp_path: Path) -> None:
    found = jobs(tmp_path, 4)
    store = twice_dead(tmp_path, found, 1)
    store.command("pause", "job03")
    waiting: list[int] = []
    look = lambda: waiting.append(read_status(store)["waiting"])
    play(store, "fifo", faults=watched([], look))
    assert waiting[0] == 3 and states(store)["job03"] == "HELD"

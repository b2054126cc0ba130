"""How jobs come into the queue of a running scheduler.

By name, in order, once, and at their time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loramux_runtime.live.inbox import LiveInbox
from loramux_runtime.live.pace import Pace
from loramux_runtime.live.state.book import Book
from loramux_runtime.live.state.run_folder import job_table
from loramux_traces.errors import UsageError

from .asking import Ask, at_steps, states
from .serving import curves, first, jobs, play, submit


def test_jobs_that_come_later(tmp_path: Path, whole: dict[str, Any]) -> None:
    found = jobs(tmp_path, 4)
    store = submit(tmp_path / "state", found[:2])
    asks: dict[int, Ask] = {3: lambda other: submit(tmp_path / "state", found[2:])}
    play(store, "fifo", faults=at_steps(store.folder, asks))
    assert curves(store) == first(whole, 4)
    times = {row["job_id"]: row for row in store.jobs()}
    assert times["job02"]["submit_s"] == times["job03"]["submit_s"] > times["job00"]["submit_s"]


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    found = jobs(tmp_path, 2)
    store = submit(tmp_path / "state", found[:1])
    with pytest.raises(UsageError, match="job00: there is a job of that name already"):
        submit(tmp_path / "state", found[::-1])
    assert [row["job_id"] for row in store.jobs()] == ["job00"]  # all or none


def test_a_name_that_is_no_text_is_no_job(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", [])
    for name in ("\udcff", "a\x1b[31m", "ä"):
        with pytest.raises(Exception, match="no job is called"):
            store.job(name)


def test_a_job_that_is_resumed_before_its_time_waits_for_it(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 2), at_s=[0.0, 0.6])
    asks: dict[int, Ask] = {
        2: lambda other: [other.command("pause", "job01"), other.command("resume", "job01")],
    }
    play(store, "fifo", faults=at_steps(store.folder, asks))
    table = job_table(store.jobs(), "")
    assert (table["waiting_time"] >= 0).all() and (table["turnaround_time"] > 0).all()
    assert store.job("job01")["start_s"] >= 0.6


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
            self._read_jobs(now_s, None)
            self.put(store.job("job02"), now_s)

    monkeypatch.setattr(LiveInbox, "poll", poll)
    play(store, "fifo")
    assert set(states(store).values()) == {"COMPLETED"}
    assert [e["event"] for e in store.events() if e.get("job_id") == "job02"] == ["read", "arrive", "start", "finish"]


def test_many_jobs_are_read_in_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(Three thousand took 11 s, one fsync each.)."""
    store = submit(tmp_path / "state", [])
    book = Book(store, lambda: 1.0)
    inbox = LiveInbox(
        store,
        due=lambda row: None,
        obey=lambda row: None,
        obeyed=book.answered,
        submitted=lambda job_id, t_s: book.set(job_id, submit_s=t_s),
        lasting=lambda: False,
        pace=Pace(lambda: 1.0, lambda: False),
    )
    submit(tmp_path / "state", jobs(tmp_path, 30)).close()
    commits: list[str] = []
    store._db.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
    inbox.poll(1.0)
    book.flush()
    assert len(commits) == 1 and all(row["submit_s"] is not None for row in store.jobs())

"""The folder of a scheduler goes, or its queue becomes another: it ends, and makes nothing anew."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loramux_cli.submission import send
from loramux_runtime.jobs.jobs_file import TrainJob
from loramux_runtime.live.state.marker import MARKER, Marker
from loramux_runtime.live.state.same_folder import FolderGone, stamp, watch_folder
from loramux_runtime.live.state.store import DATABASE, Store
from loramux_runtime.train.faults import FaultPlan
from loramux_traces.errors import StateError
from loramux_traces.locking import LOCK, owned

from .asking import states
from .serving import curves, first, jobs, play, submit


def _overwrite(path: Path, content: bytes) -> None:
    """In place: the inode stays."""
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(content)


def _replace(state: Path) -> None:
    state.rename(state.with_name("old"))
    submit(state, []).close()


def _of_another(state: Path) -> None:
    # closed by nobody: whoever closes a file of the queue in this process takes its locks
    other = submit(state.with_name("other"), [])
    other.close()
    _overwrite(state / DATABASE, (state.with_name("other") / DATABASE).read_bytes())


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "deleted": (shutil.rmtree, "the state folder is not there any more"),
    "moved": (lambda f: f.rename(f.with_name("elsewhere")), "the state folder is not there any more"),
    "replaced": (_replace, "the state folder has been replaced"),
    "database removed": (lambda f: (f / DATABASE).unlink(), f"{DATABASE} is not there any more"),
    "log removed": (lambda f: (f / f"{DATABASE}-wal").unlink(), f"{DATABASE}-wal is not there any more"),
    "index removed": (lambda f: (f / f"{DATABASE}-shm").unlink(), f"{DATABASE}-shm is not there any more"),
    "lock removed": (lambda f: (f / LOCK).unlink(), f"{LOCK} is not there any more"),
    "marker removed": (lambda f: (f / MARKER).unlink(), f"{MARKER} is not there any more"),
    "database of another": (_of_another, f"{DATABASE} has been overwritten"),
    "garbage": (lambda f: _overwrite(f / DATABASE, b"garbage " * 4096), f"{DATABASE} has been overwritten"),
    "zeros": (lambda f: _overwrite(f / DATABASE, bytes(40960)), f"{DATABASE} has been overwritten"),
    "nothing": (lambda f: _overwrite(f / DATABASE, b""), f"{DATABASE} has been overwritten"),
    "log cut": (lambda f: _overwrite(f / f"{DATABASE}-wal", b""), f"{DATABASE}-wal has been overwritten"),
    "log of zeros": (
        lambda f: _overwrite(f / f"{DATABASE}-wal", bytes(1 << 16)),
        f"{DATABASE}-wal has been overwritten",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_another_one_is_noticed(fault: str, tmp_path: Path) -> None:
    apply, words = FAULTS[fault]
    state = tmp_path / "state"
    store = submit(state, [])
    with owned(state):
        marker = Marker(state)
        folder = watch_folder(store)
        store.set_facts(policy="fifo")
        folder.check()
        apply(state)
        with pytest.raises(FolderGone, match=words):
            folder.check()
        marker.close()


def test_an_older_copy_of_the_queue_is_noticed(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", [])
    folder = watch_folder(store)
    copy = (tmp_path / "state" / DATABASE).read_bytes()
    stamp(store)
    store.db.execute("PRAGMA wal_checkpoint(PASSIVE)")
    folder.check()
    _overwrite(tmp_path / "state" / DATABASE, copy)
    with pytest.raises(FolderGone, match="has been overwritten"):
        folder.check()


def test_a_command_that_cuts_the_log_or_reads_for_long_is_no_fault(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", [])
    reader = sqlite3.connect(tmp_path / "state" / DATABASE, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM jobs").fetchall()
    # the mark cannot come into the file now
    folder = watch_folder(store)
    store.set_facts(policy="fifo")
    folder.check()
    reader.execute("COMMIT")
    for _ in range(3):
        with store.transaction():
            stamp(store)
        reader.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        folder.check()
    assert folder.mark is not None


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_scheduler_whose_folder_is_gone_makes_nothing(how: str, tmp_path: Path, whole: dict[str, Any]) -> None:
    state = tmp_path / "state"
    found = jobs(tmp_path, 3)
    store = submit(state, found)
    after: list[dict[str, int]] = []

    def tree() -> dict[str, int]:
        return {str(path.relative_to(tmp_path)): path.stat().st_ino for path in state.rglob("*")}

    def fault(_: str, facts: dict[str, object]) -> None:
        if not after and facts["stage"] == "after":
            if how == "deleted":
                shutil.rmtree(state)
            else:
                _replace(state)
            after.append(tree())

    with pytest.raises(FolderGone):
        play(store, "fifo", faults=FaultPlan(commit=fault), checkpoint_s=0.0)
    assert tree() == after[0]
    if how == "replaced":
        # the one that came in its place is another's, and works; so does the old one, moved back
        shutil.rmtree(state)
        (tmp_path / "old").rename(state)
        again = Store(state)
        play(again, "fifo")
        assert curves(again) == first(whole, 3) and set(states(again).values()) == {"COMPLETED"}


def test_nothing_is_submitted_to_a_queue_that_a_scheduler_does_not_have(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (job,) = (TrainJob.model_validate(job) for job in jobs(tmp_path, 1))
    store = submit(state, [])
    with owned(state):
        marker = Marker(state)
        folder = watch_folder(store)
        marker.opened(folder.nodes, folder.mark)
        marker.set("idle")
        send(store, [job], tmp_path)
        marker.opened(folder.nodes, (folder.mark or 0) + 1)
        marker.set("idle")
        with pytest.raises(StateError, match=r"not submitted: .* has been overwritten"):
            send(store, [job.model_copy(update={"id": "other"})], tmp_path)
        marker.opened({**folder.nodes, LOCK: (1, 2)}, folder.mark)
        marker.set("idle")
        with pytest.raises(StateError, match=f"has another {LOCK} open"):
            send(store, [job.model_copy(update={"id": "third"})], tmp_path)
        marker.close()


def test_a_state_folder_is_its_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loramux_cli.queue import _queue
    from loramux_traces.runfolder import prepare_folder

    before = os.umask(0)
    try:
        _queue(tmp_path / "submitted").close()
        prepare_folder(tmp_path / "run", resume=True, private=True)
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("submitted", "run")} == {0o700}


def test_a_queue_that_may_not_be_written_says_so(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", [])
    store.db.execute("PRAGMA query_only=1")
    with pytest.raises(StateError, match=r"queue.sqlite3: cannot be written \(by this user, or on this disk\)"):
        store.set_facts(policy="fifo")

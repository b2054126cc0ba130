"""Faults of the state folder: deleted, moved, replaced, overwritten, in parts or as a whole."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from live_fault_try import LOST_FOLDER, Try, jobs
from loramux_runtime.live.state.marker import MARKER
from loramux_runtime.live.state.store import DATABASE, Store
from loramux_traces.locking import LOCK

SAID: Final = ("deleted", "replaced", "overwritten")
"""Words of which one must be in the message."""


def _ends(t: Try) -> None:
    t.ends(LOST_FOLDER)
    t.expect(any(word in t.found.said for word in SAID), f"the message does not say what happened: {t.found.said}")


def _submit_now(t: Try) -> None:
    """Submit a job in that moment: it must be refused, or be there at the end."""
    done = t.submit(jobs(1, 150, first=4))
    t.found.notes.append("submit: " + ("submitted" if done.returncode == 0 else f"exit {done.returncode}"))


def _backup(t: Try, name: str = "backup") -> Path:
    """Copy the state folder as a careful user would: the database through SQLite."""
    copy = t.folder / name
    copy.mkdir()
    source, target = sqlite3.connect(t.state / DATABASE), sqlite3.connect(copy / DATABASE)
    source.backup(target)
    source.close()
    target.close()
    return copy


def _restore(t: Try, copy: Path) -> None:
    for part in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
        (t.state / part).unlink(missing_ok=True)
    shutil.copy(copy / DATABASE, t.state / DATABASE)


def _leave_behind(t: Try) -> None:
    """Forget the job of `_submit_now` where it is in the queue that is thrown away now."""
    if t.acknowledged.pop("job04", None) is not None:
        there = any(row["job_id"] == "job04" for row in t.rows())
        t.expect(there, "job04 was acknowledged, and is not in the queue that was there then")


def deleted(t: Try) -> None:
    """The whole folder goes."""
    t.begin()
    copy = _backup(t)
    shutil.rmtree(t.state, ignore_errors=True)
    shutil.rmtree(t.state, ignore_errors=True)
    _ends(t)
    left = sorted(str(path.relative_to(t.folder)) for path in t.state.rglob("*")) if t.state.exists() else []
    t.expect(not t.state.exists(), f"made anew: {left[:5]}")
    shutil.rmtree(t.state, ignore_errors=True)
    copy.rename(t.state)
    t.cure()


def moved(t: Try) -> None:
    """The whole folder is moved away, and back later."""
    t.begin()
    t.state.rename(t.folder / "elsewhere")
    _ends(t)
    t.expect(not t.state.exists(), "made anew in the old place")
    if not t.state.exists():
        (t.folder / "elsewhere").rename(t.state)
    t.cure()


def replaced(t: Try) -> None:
    """Moved away, and a new queue with a scheduler of its own comes in its place."""
    t.begin(4, 150)
    old = t.process
    t.state.rename(t.folder / "elsewhere")
    kept, t.acknowledged = t.acknowledged, {}
    t.expect(t.submit(jobs(2, 150)).returncode == 0, "the new folder takes no jobs")
    assert old is not None
    t.found.code = old.wait(60)
    t.found.said = t.last_line()
    t.expect(t.found.code == LOST_FOLDER, f"exit {t.found.code}")
    t.cure()
    shutil.rmtree(t.state)
    (t.folder / "elsewhere").rename(t.state)
    t.acknowledged = kept
    t.cure()


def replaced_under(t: Try) -> None:
    """The same, and the second scheduler is there before the first has noticed."""
    t.begin(4, 150)
    old, said = t.process, t.folder / "said"
    assert old is not None
    holder = t.hold_lock()  # the first cannot commit, and so looks at its folder late
    t.state.rename(t.folder / "elsewhere")
    kept, t.acknowledged = t.acknowledged, {}
    t.submit(jobs(2, 150))
    second = t.run("--exit-when-idle")
    t.found.code = old.wait(90)
    t.expect(t.found.code == LOST_FOLDER, f"exit {t.found.code}")
    t.found.said = next((line for line in said.read_text().splitlines() if "while the scheduler ran" in line), "")
    t.expect(second.wait(300) == 0, f"the second one is disturbed: {t.last_line()}")
    holder.kill()
    t.count()
    shutil.rmtree(t.state)
    (t.folder / "elsewhere").rename(t.state)
    t.acknowledged = kept
    t.cure()


def removed(t: Try, name: str) -> None:
    """One file of the queue goes."""
    t.begin()
    copy = _backup(t)
    (t.state / name).unlink()
    _submit_now(t)
    _ends(t)
    if name == DATABASE:
        _restore(t, copy)
    t.cure()


def overwritten(t: Try, with_what: Callable[[Try], bytes], name: str = DATABASE) -> None:
    """The database is overwritten in place."""
    t.begin()
    copy = _backup(t)
    content = with_what(t)
    with (t.state / name).open("r+b") as file:
        file.truncate(0)
        file.write(content)
    _submit_now(t)
    _ends(t)
    _leave_behind(t)
    _restore(t, copy)
    t.cure()


def _other(t: Try) -> bytes:
    folder = t.folder / "other"
    folder.mkdir()
    Store(folder, create=True).close()
    return (folder / DATABASE).read_bytes()


def older(t: Try) -> None:
    """An older copy of the database, made while the scheduler ran, is copied over it."""
    t.begin(4, 1500, at=10)
    copy = (t.state / DATABASE).read_bytes()
    backup = _backup(t)
    before = len(copy)
    db = sqlite3.connect(t.state / DATABASE)
    t.until(lambda: db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[0] == 0, "a checkpoint", 30)
    db.close()
    time.sleep(2)
    t.found.notes.append(f"{before} of {(t.state / DATABASE).stat().st_size} bytes")
    with (t.state / DATABASE).open("r+b") as file:
        file.truncate(0)
        file.write(copy)
    _submit_now(t)
    _ends(t)
    _leave_behind(t)
    _restore(t, backup)
    t.cure()


def part_deleted(t: Try, name: str) -> None:
    """A folder in the state folder goes: nothing in memory is lost, and training goes on."""
    t.begin()
    shutil.rmtree(t.state / name, ignore_errors=True)
    time.sleep(2.0)
    t.found.code = None if t.process is None else t.process.poll()
    t.found.said = t.last_line()
    if t.found.code is None:
        t.until(lambda: all(row["state"] in ("COMPLETED", "HELD") for row in t.rows()), "the jobs end", 120)
        t.stop()
        t.found.code, t.found.said = None, next(iter(t.said().splitlines()), "")
    else:
        t.expect(t.found.code == LOST_FOLDER, f"exit {t.found.code}")
    t.cure(resume=True)


def part_replaced(t: Try) -> None:
    """Another folder's checkpoints come in the place of those of this one."""
    other = Try(t.folder / "base", t.whole)
    other.begin(4, 150)
    other.stop()
    t.begin()
    (t.state / "checkpoints").rename(t.folder / "kept")
    shutil.copytree(other.state / "checkpoints", t.state / "checkpoints")
    other.close()
    time.sleep(2.0)
    t.found.code = None if t.process is None else t.process.poll()
    t.found.said = t.last_line()
    if t.found.code is None:
        t.stop()
        t.found.code = None
    t.cure(resume=True)


CASES: Final[dict[str, Callable[[Try], None]]] = {
    "folder deleted": deleted,
    "folder moved": moved,
    "folder replaced by a new one": replaced,
    "folder replaced, a second scheduler on the new one, the lock held": replaced_under,
    "folder: WAL removed": partial(removed, name=f"{DATABASE}-wal"),
    "folder: -shm removed": partial(removed, name=f"{DATABASE}-shm"),
    "folder: database removed": partial(removed, name=DATABASE),
    "folder: lock file removed": partial(removed, name=LOCK),
    "folder: marker removed": partial(removed, name=MARKER),
    "folder: database overwritten with another's": partial(overwritten, with_what=_other),
    "folder: database overwritten with garbage": partial(overwritten, with_what=lambda t: b"garbage " * 4096),
    "folder: database overwritten with zero bytes": partial(overwritten, with_what=lambda t: bytes(40960)),
    "folder: database truncated": partial(overwritten, with_what=lambda t: b""),
    "folder: WAL truncated": partial(overwritten, with_what=lambda t: b"", name=f"{DATABASE}-wal"),
    "folder: database overwritten with an older copy": older,
    "folder: checkpoints deleted": partial(part_deleted, name="checkpoints"),
    "folder: rows deleted": partial(part_deleted, name="rows"),
    "folder: checkpoints replaced": part_replaced,
}

"""Faults of the queue's lock: somebody holds it, for a minute, at the start, at the end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Final

from live_fault_try import LOST_FOLDER, Try, jobs
from loramux_runtime.live.state.store import DATABASE

LONG: Final = 1500
"""Steps of jobs that are still there after a minute."""
HELD_S: Final = 60.0


def lock_held(t: Try) -> None:
    """A minute, in mid-training."""
    t.begin(4, LONG)
    holder, began = t.hold_lock(), time.monotonic()
    t.expect(t.moves(), "training stands still")
    t.until(lambda: t.status()["unsaved_s"] is not None, "status says that nothing is committed", 15)
    asked = time.monotonic()
    refused = t.submit(jobs(1, 150, first=4))
    t.found.notes.append(f"submit: exit {refused.returncode} after {time.monotonic() - asked:.0f} s")
    t.expect(refused.returncode == LOST_FOLDER and "lock" in refused.stderr, f"submit: {refused.stderr[-150:]}")
    while time.monotonic() - began < HELD_S:
        time.sleep(0.5)
        moved = t.moves() or t.marked_idle()
        t.expect(moved, f"training stands still after {time.monotonic() - began:.0f} s")
        if not moved:
            break
    shown = t.cli("status", "--state", "state").stdout
    t.expect("committed" in shown, "status does not say that nothing is committed")
    holder.kill()
    t.until(lambda: t.status()["unsaved_s"] is None, "everything is committed again", 30)
    t.expect(not any(row["job_id"] == "job04" for row in t.rows()), "a refused job is in the queue")
    t.found.said = next((line for line in t.said().splitlines() if "lock" in line), "")
    t.stop()
    t.found.said = next((line for line in t.said().splitlines() if "lock" in line), "")
    t.cure()


def lock_at_start(t: Try) -> None:
    """The lock is held for 45 s while the scheduler comes up."""
    t.submit(jobs(4, 150))
    holder = t.hold_lock()
    t.run("--exit-when-idle")
    time.sleep(45)
    assert t.process is not None
    t.expect(t.process.poll() is None, "it does not wait for the lock")
    t.expect("lock" in t.said(), "it does not say what it waits for")
    holder.kill()
    t.ends(0, most_s=120)
    t.found.said = next((line for line in t.said().splitlines() if "lock" in line), "")
    t.count()


def stop_at_start(t: Try) -> None:
    """SIGTERM while the scheduler waits for the lock to come up."""
    t.submit(jobs(4, 150))
    holder = t.hold_lock()
    process = t.run()
    time.sleep(20)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    t.ends(143, most_s=60)
    t.found.notes.append(f"after {time.monotonic() - asked:.1f} s")
    t.expect(time.monotonic() - asked < 2, "the stop is not answered at once")
    holder.kill()
    t.cure()


def lock_at_stop(t: Try) -> None:
    """SIGTERM while the lock is held."""
    t.begin()
    holder = t.hold_lock()
    t.moves()
    asked = time.monotonic()
    t.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
    t.ends(143, most_s=90)
    t.found.notes.append(f"after {time.monotonic() - asked:.1f} s")
    holder.kill()
    t.cure()


def reader(t: Try) -> None:
    """A reading transaction is held for the whole run: the log cannot be cut."""
    t.submit(jobs(4, LONG))
    holder = t.hold_lock(begin="BEGIN")
    t.run("--exit-when-idle")
    t.ends(0, most_s=600)
    wal = t.state / f"{DATABASE}-wal"
    t.found.notes.append(f"log of {wal.stat().st_size / 2**20:.1f} MiB" if wal.exists() else "no log")
    holder.kill()
    t.count()


CASES: Final[dict[str, Callable[[Try], None]]] = {
    "lock held 60 s in mid-training": lock_held,
    "lock held 45 s at the start": lock_at_start,
    "SIGTERM while it waits for the lock at the start": stop_at_start,
    "SIGTERM while the lock is held": lock_at_stop,
    "lock: a reading transaction for the whole run": reader,
}

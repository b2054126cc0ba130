"""Faults of the disk: a small tmpfs that is full, and a folder that another user may only read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Final

from live_fault_try import LOST_FOLDER, Try, jobs


def _mount(t: Try, size: str) -> None:
    t.state.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", t.state], check=True)
    t.undo(lambda: subprocess.run(["umount", "-l", t.state], check=False))


def _more_room(t: Try) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", t.state], check=True)


def small(t: Try, size: str) -> None:
    """The disk is too small from the start."""
    _mount(t, size)
    done = t.submit(jobs(4, 150))
    if done.returncode:
        t.found.notes.append(f"submit: exit {done.returncode}: {done.stderr.strip()[-80:]}")
        t.expect(done.returncode == LOST_FOLDER, f"submit: exit {done.returncode}")
    t.run("--exit-when-idle")
    t.found.code = t.wait(120)
    t.found.said = t.last_line()
    if t.acknowledged:
        t.found.notes += sorted({row["state"] + " " + row["reason"][:90] for row in t.rows()})[:2]
    t.expect(t.found.code in (0, 6), f"exit {t.found.code}")
    if t.found.code is None:
        t.stop()
    _more_room(t)
    if not t.acknowledged:
        t.expect(t.submit(jobs(4, 150)).returncode == 0, "no job is taken with room")
    t.cure(resume=True)


def fills(t: Try, room: int) -> None:
    """The disk fills up in mid-training, but for some bytes."""
    _mount(t, "24m")
    t.begin()
    filler = t.state / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
        file.truncate(max(0, file.tell() - room))
    t.found.code = t.wait(8)
    t.found.said = t.last_line()
    t.expect(t.found.code in (None, 6), f"exit {t.found.code}")
    shown = t.cli("status", "--state", "state")
    t.expect(shown.returncode in (0, 6), f"status: exit {shown.returncode}: {shown.stderr[-100:]}")
    filler.unlink()
    if t.found.code is None:
        t.stop()
        t.found.code = None
    t.cure(resume=True)


def _as_other(t: Try, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user without leave: root with no rights but those of the files."""
    return t.cli(*arguments, prefix=("setpriv", "--bounding-set=-all"))


def read_only(t: Try, *, running: bool, readable: bool) -> None:
    """Another user looks at the folder, and tries to use it."""
    t.submit(jobs(2, 150))
    if running:
        t.run()
        t.until(lambda: any(row["state"] == "COMPLETED" for row in t.rows()), "a job ends")
    else:
        t.run("--exit-when-idle")
        t.ends(0)
    mode = t.state.stat().st_mode & 0o777
    t.expect(mode == 0o700, f"the state folder has mode {mode:o}")
    subprocess.run(["chown", "-R", "65534:65534", t.state], check=True)
    if readable:
        subprocess.run(["chmod", "-R", "a+rX", t.state], check=True)
    out = t.folder / "out"
    looks = (["status"], ["status", "--json"], ["logs", "job00"], ["export", "job00", "--out", str(out)])
    (t.folder / "new.json").write_text(json.dumps({"jobs": jobs(1, 150, first=4)}))
    uses = (
        ["drain"] if running else ["pause", "job00"],
        ["submit", "new.json"],
        ["run", "--base", "base", "--exit-when-idle"],
        ["prune"],
    )
    for command in looks:
        done = _as_other(t, *command, "--state", "state")
        good = done.returncode == (0 if readable else LOST_FOLDER)
        t.expect(good, f"{command[0]}: exit {done.returncode}: {done.stderr.strip()[-120:]}")
    for command in uses:
        done = _as_other(t, *command, "--state", "state")
        t.expect(done.returncode == LOST_FOLDER, f"{command[0]}: exit {done.returncode}: {done.stderr.strip()[-120:]}")
        t.found.said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    if running:
        said = t.found.said
        t.stop()
        t.found.said = said
    t.found.code = LOST_FOLDER
    t.cure()


def gone_read_only(t: Try) -> None:
    """The disk of a running scheduler turns read-only, and back."""
    _mount(t, "24m")
    t.begin()
    # files that are open for writing keep a file system from turning: it is done by force
    if subprocess.run(["mount", "-o", "remount,ro", t.state], check=False, capture_output=True).returncode:
        t.found.notes.append("the kernel refuses")
        t.stop()
    else:
        t.found.code = t.wait(15)
        t.found.said = t.last_line()
        subprocess.run(["mount", "-o", "remount,rw", t.state], check=True)
    t.cure(resume=True)


def _never(t: Try) -> None:
    t.found.notes.append("not tried: needs root")


_ALL: Final[dict[str, Callable[[Try], None]]] = {
    **{
        f"disk of {size} KiB from the start": partial(small, size=f"{size}k") for size in (64, 128, 256, 400, 800, 1600)
    },
    **{f"disk fills up but for {room >> 10} KiB": partial(fills, room=room) for room in (0, 65536, 400 << 10)},
    "disk turns read-only": gone_read_only,
    "another user, readable, running": partial(read_only, running=True, readable=True),
    "another user, readable, ended": partial(read_only, running=False, readable=True),
    "another user, mode 0700": partial(read_only, running=True, readable=False),
}
ROOT: Final = os.geteuid() == 0 and shutil.which("mount") is not None
CASES: Final[dict[str, Callable[[Try], None]]] = {name: case if ROOT else _never for name, case in _ALL.items()}

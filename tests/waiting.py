"""Waiting for a process or a file as long as something moves.

A busy machine is slow, and that is no failure.

Nothing here looks at how long something takes. A wait ends without success only when nothing has
moved for `QUIET_S`, or when a process has used more processor time than any of these ever needs.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

QUIET_S = 300.0
"""Give up when nothing has moved for so long."""
IDLE_CPU_S = 3.0
"""A process that uses no more processor time than this in `QUIET_S` only polls."""
MOST_CPU_S = 3600.0
"""A process that has used so much goes round and round; the longest here needs a tenth of it."""
POLL_S = 0.02

Progress = Callable[[], object]


def cpu_s(pid: int) -> float | None:
    """Processor time of a process and its descendants, the ended ones included.

    None where it cannot be seen.
    """
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_bytes().rpartition(b")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(stat.parent.name)] = int(fields[1])
        ticks[int(stat.parent.name)] = sum(map(int, fields[11:15]))
    family = {pid} & set(ticks)
    grown = 0
    while grown != len(family):
        grown = len(family)
        family |= {child for child, parent in parents.items() if parent in family}
    return sum(ticks[one] for one in family) / os.sysconf("SC_CLK_TCK") if family else None


def size_of(*paths: Path) -> Progress:
    """Bytes of files that may not be there yet."""
    return lambda: [path.stat().st_size if path.exists() else -1 for path in paths]


class Quiet(AssertionError):
    """Nothing has moved for long."""


class _Watch:
    """Raises when nothing has moved for long.

    That is neither what `progress` gives nor a process's processor time.
    """

    def __init__(self, what: str, process: subprocess.Popen[Any] | None, progress: Progress | None) -> None:
        self._what, self._process, self._progress = what, process, progress
        self._seen: object = None
        self._cpu_s = self._looked_s = self._moved_s = 0.0
        self._first = True

    def look(self) -> None:
        """Notice what has moved, at most twice a second."""
        now_s = time.monotonic()
        if not self._first and now_s - self._looked_s < 0.5:
            return
        self._looked_s = now_s
        seen = None if self._progress is None else self._progress()
        used_s = 0.0 if self._process is None else cpu_s(self._process.pid) or 0.0
        if self._first or seen != self._seen or used_s > self._cpu_s + IDLE_CPU_S:
            self._first, self._seen, self._cpu_s, self._moved_s = False, seen, used_s, now_s
        if used_s > MOST_CPU_S:
            raise Quiet(f"{self._what}: {used_s:.0f} seconds of processor time and no end")
        if now_s - self._moved_s > QUIET_S:
            raise Quiet(f"{self._what}: nothing has moved for {QUIET_S:.0f} s ({seen})")


def until(
    predicate: Callable[[], Any],
    *,
    process: subprocess.Popen[Any] | None = None,
    progress: Progress | None = None,
    poll_s: float = POLL_S,
) -> Any:
    """Return what `predicate` gives once that is true.

    An end of the process before that is a failure.
    """
    watch = _Watch("what is waited for does not come", process, progress)
    while True:
        ended = process is not None and process.poll() is not None
        found = predicate()
        if found:
            return found
        assert not ended, f"the process has ended ({process and process.returncode}) before it came"
        watch.look()
        time.sleep(poll_s)


def worked(process: subprocess.Popen[Any], seconds: float) -> None:
    """Wait until a process is in the middle of its work: it has used so much processor time."""
    until(lambda: (cpu_s(process.pid) or 0.0) >= seconds, process=process)


def finished(process: subprocess.Popen[Any], *, progress: Progress | None = None) -> int:
    """Wait for the end of a process and return its exit code.

    One that hangs is killed, and that is a failure.
    """
    watch = _Watch(f"{process.args!r} does not end", process, progress)
    try:
        while process.poll() is None:
            watch.look()
            time.sleep(POLL_S)
    except Quiet:
        process.kill()
        raise
    return process.wait()


def communicated(process: subprocess.Popen[str], *, progress: Progress | None = None) -> tuple[str, str]:
    """`process.communicate()`; one that hangs is killed, and that is a failure."""
    watch = _Watch(f"{process.args!r} does not end", process, progress)
    while True:
        try:
            return process.communicate(timeout=0.5)
        except subprocess.TimeoutExpired:
            try:
                watch.look()
            except Quiet:
                process.kill()
                raise


def run_process(
    command: Sequence[str], *, text_in: str | None = None, progress: Progress | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` that captures what is printed.

    A process that hangs is killed, and that is a failure.
    """
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    with tempfile.TemporaryFile("w+") as given:
        if text_in is not None:
            given.write(text_in)
            given.seek(0)
            streams["stdin"] = given
        with subprocess.Popen(list(command), **streams) as process:
            out, errors = communicated(process, progress=progress)
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

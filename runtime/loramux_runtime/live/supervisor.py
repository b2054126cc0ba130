"""This module keeps a scheduler's process alive.

A death by accident or a hang is a restart, within bounds. There is no torch in here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from loramux_runtime.live.deaths import RESTARTED, OomKills, how_died
from loramux_runtime.live.state.marker import Doing, read_marker
from loramux_runtime.live.state.store import DATABASE, Store
from loramux_traces.errors import LoramuxError

MEANT: Final = (0, 2, 3, 4, 5, 6, 130, 143)
"""Exit codes that a scheduler ends with on purpose; they are passed on."""
RESTARTS: Final = 10
DECIDING: Final = 3
"""Deaths in a row, soon after the start and while the policy decided, that are the policy's."""
LIVED_S: Final = 60.0
"""Bounds on restarts: so many deaths in a row, each within so long of its start.

After these there are no more restarts.
"""
START_S: Final = 1800.0
"""Seconds that a process may load its model without a sign of life.

It is as long as the process may hang, where that is longer: 140 GB from a network disk take a
quarter of an hour.
"""
POLL_S: Final = 0.2
_PR_SET_PDEATHSIG: Final = 1


def supervise(
    command: Sequence[str], folder: Path, *, hang_s: float, say: Callable[[str], None], poll_s: float = POLL_S
) -> int:
    """Run `command` (a scheduler on `folder`) until it ends on purpose; return its exit code.

    SIGTERM and SIGINT are handed on. A process that has said nothing for `hang_s` while it decides,
    trains or saves is killed: the next one knows by its marker what it was doing.
    """
    short_lives = deciding = 0
    environment: dict[str, str] | None = None
    child: subprocess.Popen[bytes] | None = None
    stopped_by: list[int] = []

    def hand_on(number: int, _: object) -> None:
        stopped_by.append(number)
        if child is not None and child.poll() is None:
            child.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            if stopped_by:
                # the signal came between two processes: nobody else would hear of it
                return 128 + stopped_by[0]
            began_s, oom = time.monotonic(), OomKills()
            child = subprocess.Popen(
                list(command), preexec_fn=_end_with_parent, start_new_session=True, env=environment
            )
            if stopped_by:
                child.send_signal(stopped_by[0])
            code, hung = _wait(child, folder, hang_s, say, poll_s)
            if code in MEANT:
                return code
            if stopped_by:
                return 128 + stopped_by[0]
            how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
            lived_s = time.monotonic() - began_s
            short_lives = short_lives + 1 if lived_s < LIVED_S or not _has_begun(folder, began_s) else 0
            doing = read_marker(folder)
            in_policy = doing is not None and doing.phase == "decide" and doing.since_s >= began_s
            deciding = deciding + 1 if in_policy and lived_s < LIVED_S else 0
            if doing is not None and deciding >= DECIDING:
                _remember(folder, doing, say)
            if short_lives > RESTARTS:
                say(f"the scheduler's process {how}, {short_lives} times soon after its start: giving up")
                return 1
            say(f"the scheduler's process {how}; starting it again")
            environment = {**os.environ, RESTARTED: how_died(code, hung=hung, oom_kill=oom.more())}
            time.sleep(min(5.0, 0.1 * 2**short_lives))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(
    child: subprocess.Popen[bytes], folder: Path, hang_s: float, say: Callable[[str], None], poll_s: float
) -> tuple[int, bool]:
    """Wait for the process's end; return its exit code, and whether it hung and was killed."""
    started_s = time.monotonic()
    last: Doing | None = None
    looks = 0
    while True:
        try:
            return child.wait(poll_s), False
        except subprocess.TimeoutExpired:
            pass
        doing = read_marker(folder)
        # a clock that jumps (a machine that was asleep) is no hang: it has to be looked at, too
        looks = looks + 1 if doing == last else 0
        last = doing
        if looks * poll_s < hang_s / 2:
            continue
        if doing is None or doing.since_s < started_s:
            if time.monotonic() - started_s > max(START_S, hang_s):
                say(f"nothing has begun in {max(START_S, hang_s):.0f} s: killing the scheduler's process")
                child.kill()
                return child.wait(), True
            continue
        if doing.phase in ("idle", "stopped"):
            continue
        if time.monotonic() - doing.since_s > hang_s:
            say(f"no sign of life for {hang_s:.0f} s ({_what(doing)}): killing the scheduler's process")
            child.kill()
            # a big process takes more than one look (50 ms) to die
            code = child.wait()
            _remember(folder, doing, say)
            return code, True


def _has_begun(folder: Path, began_s: float) -> bool:
    doing = read_marker(folder)
    return doing is not None and doing.since_s >= began_s


def _what(doing: Doing) -> str:
    if doing.phase == "step":
        return f"in a step of {', '.join(doing.jobs)}"
    if doing.phase == "admit":
        return f"{', '.join(doing.jobs)} was taken in"
    return "the policy was deciding" if doing.phase == "decide" else "checkpoints were being written"


def _remember(folder: Path, doing: Doing, say: Callable[[str], None]) -> None:
    """Tell the next process that the policy hung or ended it; it finds jobs by itself."""
    if doing.phase != "decide" or not (folder / DATABASE).is_file():
        return
    try:
        store = Store(folder)
        store.set_facts(hung_in_decide=True)
        store.close()
    except LoramuxError as error:
        say(f"the next process cannot be told that the policy hung: {error}")


def _end_with_parent() -> None:
    """End with the parent (Linux).

    Without its supervisor a scheduler finishes its step and ends.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

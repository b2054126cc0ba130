"""This module is the process that reads rows: orders come as lines, answers go as lines.

It may die, hang or run out of memory over a job's data; the scheduler's process does not. There is
no torch in here.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

SIGN_S: Final = 0.5
"""Seconds between two signs of life while rows are read."""
NICE: Final = 10
_PR_SET_PDEATHSIG: Final = 1


def main() -> int:
    """Serve orders from standard input until it ends."""
    # what a library prints must not come among the answers
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    for number in (signal.SIGINT, signal.SIGTERM):
        # Ctrl-C reaches the whole group: the scheduler ends this process when it is done with it
        signal.signal(number, signal.SIG_IGN)
    said_to = _Orders(sys.stdin.fileno())
    setting = json.loads(said_to.line() or b"{}")
    _be_modest(int(setting["limit_bytes"]))
    from loramux_runtime.data import load_tokenizer
    from loramux_runtime.data.made_from import of_tokenizer
    from loramux_runtime.live.reading.orders import ReadOrder
    from loramux_runtime.live.reading.read import RowReader
    from loramux_runtime.live.reading.row_files import RowFiles

    try:
        tokenizer = load_tokenizer(setting["tokenizer"])
    except BaseException as error:  # a tokenizer's panic is no Exception
        _say(answers, {"broken": said(error)})
        return 0
    reader = RowReader(tokenizer, RowFiles(Path(setting["folder"])))
    _say(answers, {"ready": of_tokenizer(tokenizer)})
    while (values := said_to.order()) is not None:
        _say(answers, {"at": values["number"]})
        order = ReadOrder.of(values)
        _say(answers, {"answer": reader.read(order, _signs(answers, order.number)).values()})
    return 0


class _Orders:
    """Takes orders from a pipe, in order; what is not begun can be taken back."""

    def __init__(self, fd: int) -> None:
        self._fd, self._text = fd, b""
        self._waiting: deque[dict[str, Any]] = deque()

    def line(self) -> bytes | None:
        """Wait for the next line; None where there are no more."""
        while b"\n" not in self._text:
            text = os.read(self._fd, 1 << 16)
            if not text:
                return None
            self._text += text
        line, self._text = self._text.split(b"\n", 1)
        return line

    def order(self) -> dict[str, Any] | None:
        """Wait for the next order that was not taken back; None where there are no more."""
        while not self._waiting or b"\n" in self._text or select.select([self._fd], [], [], 0)[0]:
            line = self.line()
            if line is None:
                # whoever waited for the answers is gone
                return None
            said = json.loads(line)
            if "order" in said:
                self._waiting.append(said["order"])
            else:
                self._waiting = deque(one for one in self._waiting if one["number"] not in said["forget"])
        return self._waiting.popleft()


def said(error: BaseException) -> str:
    """Return what an error says, on one line and never empty."""
    text = " ".join(str(error).split())
    return text[:2000] or type(error).__name__


def _signs(answers: BinaryIO, number: int) -> Callable[[int], None]:
    """Return what tells how many rows have been read, at most every half second."""
    last_s = time.monotonic()

    def sign(rows: int) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s >= SIGN_S:
            last_s = now_s
            _say(answers, {"alive": number, "rows": rows})

    return sign


def _say(answers: BinaryIO, what: Mapping[str, Any]) -> None:
    line = json.dumps(what).encode() + b"\n"
    while line:
        line = line[answers.write(line) :]


def _be_modest(limit_bytes: int) -> None:
    """Bound this process's memory, and have it stand behind training for processor and memory."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    with contextlib.suppress(OSError):
        os.nice(NICE)
    with contextlib.suppress(OSError):
        # where the machine runs out of memory, this process goes first
        Path("/proc/self/oom_score_adj").write_text("800")
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())

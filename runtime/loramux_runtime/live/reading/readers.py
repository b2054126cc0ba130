"""This module keeps the processes that read rows, and hands them orders."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol

from loramux_runtime.live.reading.orders import ReadAnswer, ReadOrder
from loramux_traces.errors import UsageError, printable

MOST: Final = 2
"""Most readers at once."""
LONG_S: Final = 5.0
"""Seconds after which a second reader takes what waits behind a job that is long to read."""
HANG_S: Final = 60.0
"""Seconds without a sign of life after which a reader is taken for hung.

A batch for the tokenizer has at most a million characters, which take seconds.
"""
START_S: Final = 600.0
"""Seconds that a reader may take to load the tokenizer, from a slow disk on a busy machine."""
LEAST_BYTES: Final = 2 << 30
COMMAND: Final = (sys.executable, "-P", "-m", "loramux_runtime.live.reading.process")
"""Starts a reader; -P: nothing is imported from the folder that the scheduler is in."""
_POLL_S: Final = 0.02


class Reading(Protocol):
    """Reads rows on order; the answers are fetched with `poll`."""

    def send(self, order: ReadOrder) -> None:
        """Have a job's rows read, after those of earlier orders."""

    def poll(self) -> list[ReadAnswer]:
        """Return the answers that have come, without waiting."""

    def drop(self, number: int) -> None:
        """Forget an order: no answer comes."""

    def rows_read(self, number: int) -> int | None:
        """Return how many rows of an order have been read; None where it waits for its turn."""

    def close(self) -> None:
        """End the readers at once."""


def limit_bytes() -> int:
    """Return the memory that one reader may use: an eighth of the machine's, and at least 2 GiB."""
    return max(LEAST_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8)


@dataclass(slots=True, eq=False)
class _Worker:
    """One reader process and what it is at."""

    process: subprocess.Popen[bytes]
    complaints: IO[bytes]
    """What it prints, for the reason where it dies."""
    heard_s: float
    text: bytes = b""
    ready: bool = False
    order: ReadOrder | None = None
    began_s: float = 0.0
    rows: int = 0


class Readers:
    """Reads rows in processes of its own: one as a rule, two where a job is long to read.

    `tokenizer` is the base model's folder (None: bytes), `folder` takes the rows. A reader that
    dies is started again, and the job that it was at is tried once more; one that shows no sign of
    life for `hang_s` is killed, and its job's rows count as unreadable.
    """

    def __init__(
        self,
        tokenizer: Path | None,
        folder: Path,
        *,
        hang_s: float = HANG_S,
        memory_bytes: int | None = None,
        command: Sequence[str] = COMMAND,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._setting = {
            "tokenizer": None if tokenizer is None else str(tokenizer.resolve()),
            "folder": str(folder.resolve()),
            "limit_bytes": memory_bytes or limit_bytes(),
        }
        self._hang_s, self._clock_s, self._command = hang_s, clock_s, command
        self._waiting: deque[ReadOrder] = deque()
        self._up = False
        """Whether a reader has ever come up: then the tokenizer was good."""
        self._workers = [self._start()]
        self._tried: set[int] = set()
        """Orders over which a reader has died once; the second time they are given up."""

    # -- contract: Reading

    def send(self, order: ReadOrder) -> None:
        """Have a job's rows read, after those of earlier orders."""
        self._waiting.append(order)
        self._assign()

    def poll(self) -> list[ReadAnswer]:
        """Return the answers that have come; look after readers that died or hang."""
        found: list[ReadAnswer] = []
        for worker in list(self._workers):
            found += self._hear(worker)
            if worker.process.poll() is not None:
                found += self._hear(worker)
                found += self._died(worker)
            elif worker.order is not None and self._clock_s() - worker.heard_s > self._hang_s:
                found.append(self._hung(worker, worker.order))
            elif not worker.ready and self._clock_s() - worker.heard_s > START_S:
                self._end(worker)
                found += self._without_reader(f"the process that reads rows has not come up in {START_S:.0f} s")
        self._assign()
        return found

    def drop(self, number: int) -> None:
        """Forget an order; the reader that is at it begins anew."""
        self._waiting = deque(order for order in self._waiting if order.number != number)
        for worker in list(self._workers):
            if worker.order is not None and worker.order.number == number:
                self._end(worker)
        self._assign()

    def rows_read(self, number: int) -> int | None:
        """Return how many rows of an order have been read; None where it waits for its turn."""
        for worker in self._workers:
            if worker.order is not None and worker.order.number == number:
                return worker.rows
        return None

    def close(self) -> None:
        """End the readers at once."""
        self._waiting.clear()
        for worker in list(self._workers):
            self._end(worker)

    # -- processes

    def wait_until_ready(self) -> None:
        """Wait until the first reader has loaded the tokenizer.

        Raises UsageError where the tokenizer cannot be loaded.
        """
        worker = self._workers[0]
        while not worker.ready:
            self._hear(worker)
            if worker.ready:
                break
            if worker.process.poll() is not None and not worker.text:
                how = f"the process that loads it {_ending(worker)}"
                raise UsageError(f"{self._setting['tokenizer']}: the tokenizer cannot be loaded: {how}")
            if self._clock_s() - worker.heard_s > START_S:
                self._end(worker)
                where = self._setting["tokenizer"]
                raise UsageError(f"{where}: the tokenizer is not loaded after {START_S:.0f} s")
            time.sleep(_POLL_S)

    def _start(self) -> _Worker:
        complaints = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the process
        process = subprocess.Popen(
            list(self._command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"},
        )
        assert process.stdin is not None and process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        worker = _Worker(process, complaints, self._clock_s())
        self._tell(worker, json.dumps(self._setting))
        return worker

    @staticmethod
    def _tell(worker: _Worker, line: str) -> None:
        assert worker.process.stdin is not None
        # a reader that is dead is found so by `poll`
        with contextlib.suppress(OSError):
            worker.process.stdin.write(line.encode() + b"\n")
            worker.process.stdin.flush()

    def _end(self, worker: _Worker) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
        worker.process.kill()
        worker.process.wait()
        for pipe in (worker.process.stdin, worker.process.stdout, worker.complaints):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()

    def _assign(self) -> None:
        """Give waiting orders to readers that have nothing to do."""
        if not self._waiting:
            return
        if not self._workers:
            self._workers.append(self._start())
        for worker in self._workers:
            if worker.ready and worker.order is None and self._waiting:
                self._give(worker, self._waiting.popleft())
        now_s = self._clock_s()
        long = all(worker.order is not None and now_s - worker.began_s > LONG_S for worker in self._workers)
        if self._waiting and long and len(self._workers) < MOST:
            self._workers.append(self._start())

    def _give(self, worker: _Worker, order: ReadOrder) -> None:
        worker.order, worker.rows = order, 0
        worker.began_s = worker.heard_s = self._clock_s()
        self._tell(worker, order.text())

    # -- what they say

    def _hear(self, worker: _Worker) -> list[ReadAnswer]:
        found: list[ReadAnswer] = []
        assert worker.process.stdout is not None
        while True:
            try:
                text = os.read(worker.process.stdout.fileno(), 1 << 16)
            except (BlockingIOError, OSError, ValueError):
                break
            if not text:
                break
            worker.text += text
        *lines, worker.text = worker.text.split(b"\n")
        for line in lines:
            found += self._heard(worker, json.loads(line))
        return found

    def _heard(self, worker: _Worker, what: dict[str, Any]) -> list[ReadAnswer]:
        worker.heard_s = self._clock_s()
        if "broken" in what:
            self._end(worker)
            return self._without_reader(str(what["broken"]))
        if "ready" in what:
            worker.ready = self._up = True
        elif "alive" in what:
            worker.rows = int(what["rows"])
        elif worker.order is not None and what["answer"]["number"] == worker.order.number:
            worker.order = None
            self._tried.discard(what["answer"]["number"])
            return [ReadAnswer.of(what["answer"])]
        return []

    def _died(self, worker: _Worker) -> list[ReadAnswer]:
        order, how = worker.order, _ending(worker)
        self._end(worker)
        if order is None:
            return [] if worker.ready else self._without_reader(f"the process that reads rows {how}")
        if order.number not in self._tried:
            self._tried.add(order.number)
            self._waiting.appendleft(order)
            return []
        self._tried.discard(order.number)
        reason = f"the process that reads its rows {how}, twice"
        return [ReadAnswer(number=order.number, fate="refused", reason=reason)]

    def _without_reader(self, why: str) -> list[ReadAnswer]:
        """Answer all that wait: no reader comes up (any more).

        Raises UsageError where none has ever come up.
        """
        if not self._up:
            raise UsageError(why)
        waiting, self._waiting = self._waiting, deque()
        return [
            ReadAnswer(number=order.number, fate="disk", reason=f"its rows cannot be read now: {why}")
            for order in waiting
        ]

    def _hung(self, worker: _Worker, order: ReadOrder) -> ReadAnswer:
        rows = worker.rows
        self._end(worker)
        reason = f"reading its rows has made no progress for {self._hang_s:.0f} s (after {rows} rows)"
        return ReadAnswer(number=order.number, fate="refused", reason=reason)


def _ending(worker: _Worker) -> str:
    """Say how a reader ended, with the last line that it printed."""
    code = worker.process.returncode
    how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
    try:
        size = worker.complaints.seek(0, os.SEEK_END)
        worker.complaints.seek(max(0, size - 2000))
        lines = worker.complaints.read().decode(errors="replace").split("\n")
    except (OSError, ValueError):
        return how
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    memory = " (out of memory?)" if code == -9 else ""
    return how + memory + (f": {printable(last, 200)}" if last else "")

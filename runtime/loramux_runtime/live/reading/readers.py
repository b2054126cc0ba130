"""This module keeps the processes that read rows, and hands them orders."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from loramux_runtime.data.made_from import what_changed
from loramux_runtime.live.reading.orders import ReadAnswer, ReadOrder
from loramux_runtime.live.reading.reader_process import ReaderProcess
from loramux_traces.errors import UsageError
from loramux_traces.files import real_path

MOST: Final = 2
"""Most readers at once."""
LONG_S: Final = 5.0
"""Seconds after which a second reader takes what waits behind a job that is long to read."""
HANG_S: Final = 60.0
"""Seconds without a sign of life after which a reader is taken for hung.

A batch for the tokenizer has at most a million characters, which take seconds.
"""
AGAIN_S: Final = 2.0
"""Seconds after which a reader that seems hung is looked at again, before it is killed.

A clock that jumps makes one look late; a reader that lives says so every half second.
"""
START_S: Final = 600.0
"""Seconds that a reader may take to load the tokenizer, from a slow disk on a busy machine."""
LEAST_BYTES: Final = 2 << 30
COMMAND: Final = (sys.executable, "-P", "-m", "loramux_runtime.live.reading.process")
"""Starts a reader; -P: nothing is imported from the folder that the scheduler is in."""
CHANGED_SINCE: Final = "is not what it was when the scheduler began"
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
            "tokenizer": None if tokenizer is None else str(real_path(tokenizer)),
            "folder": str(real_path(folder)),
            "limit_bytes": memory_bytes or limit_bytes(),
        }
        self._hang_s, self._clock_s, self._command = hang_s, clock_s, command
        self._waiting: deque[ReadOrder] = deque()
        self._tokenizer: Mapping[str, str] | None = None
        """The tokenizer of the first reader that came up: then it was good."""
        self._readers = [self._start()]
        self._tried: set[int] = set()
        """Orders over which a reader has died once; the second time they are given up."""
        self._silent: dict[ReaderProcess, float] = {}
        """Readers that seem hung, with the time of the look that found them so."""

    # -- contract: Reading

    def send(self, order: ReadOrder) -> None:
        """Have a job's rows read, after those of earlier orders."""
        self._waiting.append(order)
        self._assign()

    def poll(self) -> list[ReadAnswer]:
        """Return the answers that have come; look after readers that died or hang."""
        found: list[ReadAnswer] = []
        for reader in list(self._readers):
            # whether it has ended is asked first: what it said before that is heard after it
            ended = reader.ended
            found += self._hear(reader)
            if reader not in self._readers:
                continue
            if ended:
                found += self._died(reader)
            elif reader.busy and self._hangs(reader):
                found += self._hung(reader)
            elif not reader.ready and self._clock_s() - reader.heard_s > START_S:
                self._end(reader)
                found += self._without_reader(f"the process that reads rows has not come up in {START_S:.0f} s")
        self._assign()
        return found

    def drop(self, number: int) -> None:
        """Forget an order; the reader that is at it begins anew."""
        self._waiting = deque(order for order in self._waiting if order.number != number)
        for reader in list(self._readers):
            if reader.at is not None and reader.at.number == number:
                self._end(reader)
            else:
                reader.take_back([number])
        self._assign()

    def rows_read(self, number: int) -> int | None:
        """Return how many rows of an order have been read; None where it waits for its turn."""
        for reader in self._readers:
            if reader.at is not None and reader.at.number == number:
                return reader.rows
        return None

    def close(self) -> None:
        """End the readers at once."""
        for reader in list(self._readers):
            self._end(reader)
        self._waiting.clear()

    # -- processes

    def wait_until_ready(self) -> None:
        """Wait until the first reader has loaded the tokenizer.

        Raises UsageError where the tokenizer cannot be loaded.
        """
        reader, where = self._readers[0], self._setting["tokenizer"]
        while not reader.ready:
            ended = reader.ended
            self._hear(reader)
            if ended and not reader.ready:
                raise UsageError(f"{where}: the tokenizer cannot be loaded: the process that loads it {reader.how()}")
            if self._clock_s() - reader.heard_s > START_S:
                self._end(reader)
                raise UsageError(f"{where}: the tokenizer is not loaded after {START_S:.0f} s")
            time.sleep(_POLL_S)

    def _start(self) -> ReaderProcess:
        return ReaderProcess(self._command, self._setting, self._clock_s)

    def _end(self, reader: ReaderProcess) -> None:
        """End a reader; what it has not begun waits for another one, before what came later."""
        self._waiting.extendleft(reversed(reader.take_back()))
        if reader in self._readers:
            self._readers.remove(reader)
        self._silent.pop(reader, None)
        reader.end()

    def _assign(self) -> None:
        """Give waiting orders to readers; none waits behind one that is long to read."""
        now_s = self._clock_s()
        long = [reader for reader in self._readers if reader.busy and now_s - reader.began_s > LONG_S]
        for reader in long:
            self._waiting.extendleft(reversed(reader.take_back()))
        if not self._waiting:
            return
        free = [reader for reader in self._readers if reader not in long]
        while self._waiting:
            takers = [reader for reader in free if reader.has_room]
            if not takers:
                break
            min(takers, key=lambda reader: reader.n_orders).give(self._waiting.popleft())
        if self._waiting and not free and len(self._readers) < MOST:
            self._readers.append(self._start())

    # -- what they say

    def _hear(self, reader: ReaderProcess) -> list[ReadAnswer]:
        found: list[ReadAnswer] = []
        for line in reader.hear():
            if "broken" in line:
                self._end(reader)
                return found + self._without_reader(str(line["broken"]))
            self._tried.discard(line["answer"]["number"])
            found.append(ReadAnswer.of(line["answer"]))
        if reader.tokenizer is None:
            return found
        self._tokenizer = self._tokenizer or reader.tokenizer
        changed = what_changed(self._tokenizer, reader.tokenizer)
        if changed:
            # jobs of one scheduler are trained on rows of one tokenizer
            self._end(reader)
            why = f"{changed} of the base {CHANGED_SINCE}; start the scheduler again to read with it"
            return found + self._without_reader(why)
        return found

    def _died(self, reader: ReaderProcess) -> list[ReadAnswer]:
        order, how = reader.at, reader.how()
        self._end(reader)
        if order is None:
            return [] if reader.ready else self._without_reader(f"the process that reads rows {how}")
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
        if self._tokenizer is None:
            raise UsageError(why)
        waiting, self._waiting = self._waiting, deque()
        return [
            ReadAnswer(number=order.number, fate="disk", reason=f"its rows cannot be read now: {why}")
            for order in waiting
        ]

    def _hangs(self, reader: ReaderProcess) -> bool:
        now_s = self._clock_s()
        if now_s - reader.heard_s <= self._hang_s:
            self._silent.pop(reader, None)
            return False
        return now_s - self._silent.setdefault(reader, now_s) > min(AGAIN_S, self._hang_s)

    def _hung(self, reader: ReaderProcess) -> list[ReadAnswer]:
        order, rows = reader.at, reader.rows
        self._end(reader)
        if order is None:
            return []
        reason = f"reading its rows has made no progress for {self._hang_s:.0f} s (after {rows} rows)"
        return [ReadAnswer(number=order.number, fate="refused", reason=reason)]

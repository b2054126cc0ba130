"""This module has the rows of jobs read beside training, and lets jobs in when they are there.

Training never waits for rows. What a job's data costs in time and memory, and what it breaks, is
the reader's (`reading`) and the job's own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, Final

from loramux_runtime.live.pace import Pace
from loramux_runtime.live.reading.orders import ReadAnswer, ReadOrder
from loramux_runtime.live.reading.readers import Reading
from loramux_runtime.live.state.job_rows import JobRow

TOGETHER_S: Final = 0.5
"""Seconds that an idle device waits for the rows of jobs that came together.

A policy should see all of them: it decides better, and the first step is fuller.
"""


class Admission:
    """Holds the jobs whose time has come and that the loop does not have yet.

    `order` makes the order for a row's data (None: the job needs no reading), `arrive` lets a job
    into the loop with what was read.
    """

    def __init__(
        self,
        reading: Reading,
        pace: Pace,
        *,
        row: Callable[[str], JobRow],
        order: Callable[[JobRow, int], ReadOrder | None],
        arrive: Callable[[JobRow, ReadAnswer | None], Any],
        training: Callable[[], bool],
    ) -> None:
        self._reading, self._pace = reading, pace
        self._row, self._order, self._arrive, self._training = row, order, arrive, training
        self._numbers = count(time.monotonic_ns())
        """Numbers of orders: a reader may be handed on to another scheduler in tests."""
        self._jobs: dict[int, str] = {}
        """Jobs that are being read, or wait for it, by the numbers of their orders."""
        self._here: set[str] = set()
        self._ready: deque[tuple[str, ReadAnswer | None]] = deque()
        self._ready_s = 0.0
        """When the first of those that are ready became so, on the monotonic clock."""

    def put(self, row: JobRow) -> None:
        """Have a job's rows read; it arrives when they are there."""
        number = next(self._numbers)
        self._here.add(row["job_id"])
        order = self._order(row, number)
        if order is None:
            self._get_ready(row["job_id"], None)
            return
        self._jobs[number] = row["job_id"]
        self._reading.send(order)

    def take(self, job_id: str) -> bool:
        """Take a job out again; return whether it was here."""
        if job_id not in self._here:
            return False
        self._here.discard(job_id)
        for number, name in list(self._jobs.items()):
            if name == job_id:
                del self._jobs[number]
                self._reading.drop(number)
                return True
        self._ready = deque(entry for entry in self._ready if entry[0] != job_id)
        return True

    def turn(self) -> None:
        """Let in the jobs whose rows are there, as far as `Pace` lets."""
        self._listen()
        if not self._ready or self._waits_for_others():
            return
        while self._ready and self._pace.left():
            job_id, answer = self._ready.popleft()
            self._here.discard(job_id)
            self._arrive(self._row(job_id), answer)

    def news(self) -> bool:
        """Return whether a job can be let in."""
        self._listen()
        return bool(self._ready) and not self._waits_for_others()

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._here

    def __len__(self) -> int:
        return len(self._here)

    def job_ids(self) -> list[str]:
        """Return the jobs that are here."""
        return [*self._jobs.values(), *(job_id for job_id, _ in self._ready)]

    def why(self) -> dict[str, str]:
        """Return what to say of the jobs whose rows are being read at this moment."""
        rows = {job_id: self._reading.rows_read(number) for number, job_id in self._jobs.items()}
        return {name: f"its rows are being read ({n:,} so far)" for name, n in rows.items() if n is not None}

    def close(self) -> None:
        """End the readers: what they were at is read again by the next scheduler."""
        self._reading.close()

    def _listen(self) -> None:
        if not self._jobs:
            return
        for answer in self._reading.poll():
            job_id = self._jobs.pop(answer.number, None)
            if job_id is not None:
                self._get_ready(job_id, answer)

    def _get_ready(self, job_id: str, answer: ReadAnswer | None) -> None:
        if not self._ready:
            self._ready_s = time.monotonic()
        self._ready.append((job_id, answer))

    def _waits_for_others(self) -> bool:
        """Return whether an idle device waits for the rows of more jobs, for a moment."""
        if not self._jobs or self._training():
            return False
        return time.monotonic() - self._ready_s < TOGETHER_S

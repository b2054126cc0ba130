"""This module has the states of jobs made, or read from their checkpoints, beside training.

An adapter with eight experts for an 8B base takes 5 s to make and as long again to read
(`tests/benchmarks/bench_joining.py`). A step that waited for it would take everyone that long.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final, Protocol

from loramux_policies.errors import let_through
from loramux_policies.loop.blame import text_of
from loramux_policies.loop.job import Job
from loramux_policies.stepping.contracts import Arrival
from loramux_runtime.fused.memory_meter import is_out_of_memory
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_traces.errors import LoramuxError

AT_ONCE_BYTES: Final = 8 << 20
"""States up to this size are made where they are asked for, which takes about 0.05 s."""
MOST: Final = 2
"""Most states that are made at once."""
HANG_S: Final = 60.0
"""Seconds that the making of any state may take, beside those that its size takes."""
BYTES_PER_S: Final = 10e6
"""Speed of a disk, or of a busy machine, that is too slow to be waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Holds a state that has been made, and what has to be told of it."""

    training: TrainingJob
    found: Mapping[str, Any] | None
    """What its checkpoint says of the job; None where it begins at its first step."""
    warnings: tuple[str, ...]
    entry: object
    """What it was made from: it is of no use where the job has other rows by now."""


class States(Protocol):
    """Makes states of jobs, and books those that were made."""

    def size_bytes(self, job: Job) -> float:
        """Return about how many bytes have to be made or read."""

    def make(self, job_id: str) -> Made:
        """Make a state; this is called in a thread, and touches nothing that others use."""

    def take(self, job: Job, made: Made) -> bool:
        """Book a state that was made; return whether it is still of use."""


@dataclass(slots=True, eq=False)
class _Task:
    """Holds a state in the making."""

    job: Job
    size_bytes: float
    began_s: float = inf
    """When a thread began with it; never, where it waits or was made at once."""
    made: Made | None = None
    fault: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def run(self, make: Callable[[str], Made]) -> None:
        """Make the state, whatever comes of it."""
        try:
            self.made = make(self.job.job_id)
        except BaseException as error:  # also a panic of a library's own: it is this job's
            self.fault = error
            error.__traceback__ = None  # it would pin the tensors of the job
        self.done.set()

    def overdue(self, now_s: float) -> bool:
        """Return whether this has taken longer than a slow disk explains."""
        return now_s - self.began_s > HANG_S + self.size_bytes / BYTES_PER_S


class Makers:
    """Keeps the states in the making.

    `training`: the states in memory, by job id; `active`: the job of an id that the loop has, or
    None; `joining` is entered while a state is made at once, `making` hears of the jobs whose
    states are made beside training, with their progress; `suspect` says of whose making the process
    may have died before.
    """

    def __init__(
        self,
        states: Callable[[], States],
        training: dict[str, TrainingJob],
        *,
        active: Callable[[str], Job | None],
        joining: Callable[[Job], AbstractContextManager[None]],
        making: Callable[[Mapping[str, float]], None],
        suspect: Callable[[str], bool],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._of, self._training, self._active = states, training, active
        self._joining, self._making, self._suspect, self._clock_s = joining, making, suspect, clock_s
        self._tasks: dict[str, _Task] = {}
        self._waiting: deque[_Task] = deque()
        self._running: list[_Task] = []

    def fetch(self, job: Job) -> bool:
        """Return whether the job's state is in memory; else it is being made from now on."""
        job_id = job.job_id
        if job_id in self._training:
            return True
        task = self._tasks.get(job_id)
        if task is not None:
            if task.made is None:
                return False
            if self._take(task, job):
                return True
        self._begin(job)
        task = self._tasks[job_id]
        return task.made is not None and self._take(task, job)

    def arrived(self) -> list[Arrival]:
        """Return whose states have been made since, or cannot be."""
        now_s, found = self._clock_s(), []
        for job_id, task in list(self._tasks.items()):
            late = not task.done.is_set() and task.overdue(now_s)
            if not (task.done.is_set() or late):
                continue
            job = self._active(job_id)
            if task.made is None:
                self._forget(task)
                found.append(self._failed(task, now_s))
            elif job is None:
                self._forget(task)
            elif self._take(task, job):
                found.append(Arrival(job_id))
            else:
                # made from what the job no longer has: it is made anew
                self._begin(job)
        self._assign()
        return found

    def news(self) -> bool:
        """Return whether a state has been made, or is not waited for any more."""
        now_s = self._clock_s()
        return any(task.done.is_set() or task.overdue(now_s) for task in self._tasks.values())

    def _begin(self, job: Job) -> None:
        """Have a state made: at once where it is small, or may be what the process died of."""
        states = self._of()
        task = self._tasks[job.job_id] = _Task(job, states.size_bytes(job))
        if task.size_bytes <= AT_ONCE_BYTES or self._suspect(job.job_id):
            with self._joining(job):
                task.run(states.make)
                if task.fault is not None:
                    let_through(task.fault)
            return
        self._waiting.append(task)
        self._assign()

    def _assign(self) -> None:
        """Begin what waits, where fewer than MOST are being made."""
        self._running = [task for task in self._running if task.job.job_id in self._tasks and not task.done.is_set()]
        while self._waiting and len(self._running) < MOST:
            task = self._waiting.popleft()
            if self._tasks.get(task.job.job_id) is not task:
                continue
            task.began_s = self._clock_s()
            self._running.append(task)
            self._mark()
            threading.Thread(target=task.run, args=(self._of().make,), name="make a state", daemon=True).start()
        self._mark()

    def _mark(self) -> None:
        self._making({task.job.job_id: task.job.done_steps for task in self._running})

    def _take(self, task: _Task, job: Job) -> bool:
        assert task.made is not None
        self._forget(task)
        if not self._of().take(job, task.made):
            return False
        self._training[job.job_id] = task.made.training
        return True

    def _forget(self, task: _Task) -> None:
        del self._tasks[task.job.job_id]

    @staticmethod
    def _failed(task: _Task, now_s: float) -> Arrival:
        error = task.fault
        if error is None:
            return Arrival(task.job.job_id, f"it is not there after {now_s - task.began_s:.0f} s")
        short = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error))
        said = str(error) if isinstance(error, LoramuxError) else f"{type(error).__name__}: {text_of(str(error))}"
        return Arrival(task.job.job_id, said, short)

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
from loramux_policies.loop.job import Job
from loramux_policies.said import message_of
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

    def is_current(self, job: Job, made: Made) -> bool:
        """Return whether a state that was made is still of use."""

    def take(self, job: Job, made: Made) -> None:
        """Book a state that was made."""


@dataclass(slots=True, eq=False)
class _Task:
    """Holds a state in the making."""

    job: Job
    size_bytes: float
    began_s: float = inf
    """When a thread began with it; never, where it waits or was made at once."""
    made: Made | None = None
    fault: BaseException | None = None
    told: bool = False
    """Whether `Makers.arrived` has named it."""
    beside: bool = False
    """Whether another one was made at the same time."""
    alone: bool = False
    """Whether it is made with no other one beside it, because memory ran out."""
    done: threading.Event = field(default_factory=threading.Event)

    def run(self, make: Callable[[str], Made]) -> None:
        """Make the state, whatever comes of it."""
        try:
            self.made = make(self.job.job_id)
        except BaseException as error:  # also a panic of a library's own: it is this job's
            self.fault = error
            error.__traceback__ = None  # it would pin the tensors of the job
        self.done.set()

    def ready(self, now_s: float) -> bool:
        """Return whether this is done, or has taken longer than a slow disk explains."""
        return self.done.is_set() or now_s - self.began_s > HANG_S + self.size_bytes / BYTES_PER_S

    @property
    def out_of_memory(self) -> bool:
        """Whether it failed because memory ran out."""
        return _out_of_memory(self.fault)


def without(job_id: str, error: BaseException) -> Arrival:
    """Say that a job's state cannot be had because of this error."""
    said = str(error) if isinstance(error, LoramuxError) else f"{type(error).__name__}: {message_of(error)}"
    return Arrival(job_id, said, _out_of_memory(error))


def _out_of_memory(error: BaseException | None) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error))


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
        if task is None or (task.made is not None and not self._of().is_current(job, task.made)):
            task = self._begin(job)
        if task.made is None:
            return False
        del self._tasks[job_id]
        self._of().take(job, task.made)
        self._training[job_id] = task.made.training
        return True

    def arrived(self) -> list[Arrival]:
        """Return whose states have been made since, or cannot be."""
        now_s, found = self._clock_s(), []
        for job_id, task in list(self._tasks.items()):
            if self._active(job_id) is None:  # the job has gone
                del self._tasks[job_id]
            elif task.ready(now_s) and not task.told and not self._once_more(task):
                task.told = True
                found.append(self._arrival(task, now_s))
                if task.made is None:
                    del self._tasks[job_id]
        self._assign()
        return found

    def news(self) -> bool:
        """Return whether a state has been made, or is not waited for any more."""
        now_s = self._clock_s()
        return any(task.ready(now_s) and not task.told for task in self._tasks.values())

    def _begin(self, job: Job) -> _Task:
        """Have a state made: at once where it is small, or may be what the process died of."""
        states = self._of()
        task = self._tasks[job.job_id] = _Task(job, states.size_bytes(job))
        if task.size_bytes <= AT_ONCE_BYTES or self._suspect(job.job_id):
            with self._joining(job):
                task.run(states.make)
                if task.fault is not None:
                    let_through(task.fault)
        else:
            self._waiting.append(task)
            self._assign()
        return task

    def _once_more(self, task: _Task) -> bool:
        """Have a state made again, by itself, where memory ran out beside that of another job."""
        if task.alone or not task.beside or not task.out_of_memory:
            return False
        task.fault, task.alone, task.began_s = None, True, inf
        task.done.clear()
        self._running = [other for other in self._running if other is not task]
        self._waiting.append(task)
        return True

    def _assign(self) -> None:
        """Begin what waits, where fewer than MOST are being made."""
        self._running = [task for task in self._running if not task.done.is_set() and task in self._tasks.values()]
        while self._waiting and len(self._running) < MOST and not any(task.alone for task in self._running):
            task = self._waiting[0]
            gone = self._tasks.get(task.job.job_id) is not task
            if not gone and task.alone and self._running:
                break
            self._waiting.popleft()
            if gone:
                continue
            task.began_s = self._clock_s()
            self._running.append(task)
            for one in self._running:
                one.beside = one.beside or len(self._running) > 1
            self._mark()
            threading.Thread(target=task.run, args=(self._of().make,), name="make a state", daemon=True).start()
        self._mark()

    def _mark(self) -> None:
        self._making({task.job.job_id: task.job.done_steps for task in self._running})

    @staticmethod
    def _arrival(task: _Task, now_s: float) -> Arrival:
        error = task.fault
        if task.made is not None:
            return Arrival(task.job.job_id)
        if error is None:
            return Arrival(task.job.job_id, f"it is not there after {now_s - task.began_s:.0f} s")
        return without(task.job.job_id, error)

"""This module writes training curves for TensorBoard, one run a job, its scalars by optimizer step.

It needs the extra `tensorboard`. The records and their checksums are tensorboard's own, without a
thread per job and without torch: one write per row, so that a killed scheduler leaves at most a
torn last record, which TensorBoard passes over.

A scheduler that starts again goes on from a checkpoint, so steps come twice. The file of the new
process begins with a session start at the first step it writes (what SummaryWriter calls
purge_step), and TensorBoard then drops what older files say of that step and later ones. The same
mark is written where a job goes back within one process.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Final

from loramux_traces.errors import UsageError

JOB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MOST_OPEN: Final = 64
"""Most files held open; the one not written to for longest is closed."""
RETRY_S: Final = 60.0
"""Seconds for which rows are dropped after a write failed (a full disk), before the next try."""
_STAMP: Final = re.compile(r"events\.out\.tfevents\.(\d{10})\.")
_NOT_SCALARS: Final = ("t_s", "job_id", "step", "total_steps")


class TensorBoardLog:
    """Writes training records below `folder`, a subfolder a job.

    A curve is never worth a run: where a file cannot be written, rows are dropped and `problem`
    says why. Raises UsageError where tensorboard is not installed.
    """

    def __init__(self, folder: Path, *, clock_s: Callable[[], float] = time.time) -> None:
        try:
            self._event: Any = import_module("tensorboard.compat.proto.event_pb2")
            self._writer: Any = import_module("tensorboard.summary.writer.record_writer").RecordWriter
        except ImportError as error:
            raise UsageError(
                f"curves for TensorBoard need tensorboard: pip install 'loramux[tensorboard]' ({error})"
            ) from error
        self.folder = folder
        self.problem: str | None = None
        """What the latest failure was; None where there was none."""
        self._clock_s = clock_s
        self._open: OrderedDict[str, _JobFile] = OrderedDict()
        self._silent_until_s = -math.inf

    def record(self, job_id: str, row: Mapping[str, Any]) -> None:
        """Write the scalars of one training record.

        `eval_x` is written as eval/x (where it has changed: a record repeats the latest
        evaluation), every other number as train/x. None and what is not finite is left out.

        A job's file is closed with its last step. Raises ValueError for a job id that is no name of
        a folder.
        """
        if JOB_ID.fullmatch(job_id) is None:
            raise ValueError(f"{job_id[:80]!r} is no job id")
        now_s = self._clock_s()
        if now_s < self._silent_until_s:
            return
        step = int(row["step"])
        try:
            file = self._file(job_id, step)
            scalars = file.scalars(row)
            if scalars:
                event = self._event.Event(wall_time=now_s, step=step)
                for tag, value in scalars.items():
                    event.summary.value.add(tag=tag, simple_value=value)
                file.write(event)
            file.step = step
            if step >= row.get("total_steps", math.inf):
                self.finish(job_id)
        except OSError as error:
            self.problem = f"{self.folder / job_id}: {error.strerror or error}"
            self._silent_until_s = now_s + RETRY_S
            self.finish(job_id)

    def finish(self, job_id: str) -> None:
        """Close the file of a job that has ended or left the device; a later row opens another."""
        file = self._open.pop(job_id, None)
        if file is not None:
            file.close()

    def close(self) -> None:
        """Close every file; a later row opens another."""
        for job_id in tuple(self._open):
            self.finish(job_id)

    def _file(self, job_id: str, step: int) -> _JobFile:
        file = self._open.get(job_id)
        if file is None:
            while len(self._open) >= MOST_OPEN:
                self.finish(next(iter(self._open)))
            file = self._open[job_id] = _JobFile(self.folder / job_id, self._writer, self._clock_s())
            file.write(self._event.Event(wall_time=self._clock_s(), step=step, file_version="brain.Event:2"))
            file.step = math.inf if file.follows else -1
        self._open.move_to_end(job_id)
        if step <= file.step:
            start = self._event.SessionLog(status=self._event.SessionLog.START)
            file.write(self._event.Event(wall_time=self._clock_s(), step=step, session_log=start))
        return file


class _JobFile:
    """Holds an event file of one job, which comes after all that are there already.

    The order is by name: TensorBoard reads them in that order.
    """

    def __init__(self, folder: Path, writer: Any, now_s: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink():
            raise OSError(f"{folder} is a link")
        stamps = [int(match[1]) for name in os.listdir(folder) if (match := _STAMP.match(name))]
        self.follows = bool(stamps)
        """Whether another file of the job is there."""
        self.step: float = -1
        """Last step written to the file."""
        # a clock that was set back does not change the order of the files
        stamp = max([int(now_s), *(stamp + 1 for stamp in stamps)])
        name = f"events.out.tfevents.{stamp:010d}.loramux.{os.getpid()}"
        self._raw: IO[bytes] = open(folder / name, "xb")  # noqa: SIM115 - closed in close()
        self._records = writer(self._raw)
        self._evaluated: dict[str, float] = {}

    def scalars(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Return the tags and values of a record."""
        found: dict[str, float] = {}
        evaluated: dict[str, float] = {}
        for key, value in row.items():
            if key in _NOT_SCALARS or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            if key.startswith("eval_"):
                evaluated[f"eval/{key.removeprefix('eval_')}"] = float(value)
            else:
                found[f"train/{key}"] = float(value)
        if evaluated != self._evaluated:
            self._evaluated = evaluated
            found |= evaluated
        return found

    def write(self, event: Any) -> None:
        """Write one record; the kernel has it when this returns. Raises OSError."""
        self._records.write(event.SerializeToString())
        self._raw.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            # this drops the rest of a record that could not be written
            self._raw.close()

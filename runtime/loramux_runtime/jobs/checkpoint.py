"""This module keeps durable checkpoints of training jobs.

FOLDER/JOB/STEP-ROWS/ holds one. A name of that form always means a checkpoint that is whole on the
disk: it is written and synced under a temporary name, then renamed, then its parent is synced; one
that goes is renamed before it is deleted. So a kill at any moment leaves a valid checkpoint as long
as there was one.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from safetensors import SafetensorError

from loramux_runtime.jobs.checkpoint_files import UnreadableError, cannot_be_opened, read_files, write_files
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_traces.errors import StateError, UsageError
from loramux_traces.filesafe import sync

_LOG: Final = logging.getLogger(__name__)
_JOB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_NAME: Final = re.compile(r"(\d{10,})-(\d{6,})")
_TEMPORARY, _ASIDE, _GONE = ".tmp", ".old", ".gone"
"""Ends of hidden names, in this order.

One is being written; one is valid, but replaced by another at the same position; one is being
deleted.
"""
_HEADER_BYTES: Final = 1 << 20
_COPIES: Final = 5
"""Tensors as large as the parameters in a checkpoint, and one to spare.

They are the parameters, the gradient and two moments.
"""

Position = tuple[int, int]
"""The optimizer steps, and the rows of the one in progress."""


class Faults(Protocol):
    """Gives tests their chance to break a save at a stage (`train.faults.FaultPlan`)."""

    def reach(self, point: str, **facts: object) -> None:
        """Give the fault planned for this point its chance."""


class CheckpointStore:
    """Keeps checkpoints by job.

    One process at a time may write to a folder (the scheduler's lock sees to that). `keep`: newest
    checkpoints kept for each job. `warn` is told of each checkpoint that is passed over.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        faults: Faults | None = None,
        warn: Callable[[str], None] = _LOG.warning,
    ) -> None:
        if keep < 1:
            raise UsageError(f"at least one checkpoint must be kept, got {keep}")
        self._folder, self._keep, self._faults, self._warn = folder, keep, faults, warn

    def save(self, job_id: str, training: TrainingJob, extra: dict[str, Any]) -> Path:
        """Write a checkpoint and return its folder when it is safely on the disk.

        Older ones beyond `keep` go. So do those of a later position: the job has left that future
        (its step was rewound, or they were not valid). `extra`: JSON facts, given back by `load`;
        ValueError where they hold NaN. Raises StateError where it cannot be written: the others
        stay as they were and no temporary is left.
        """
        parent = self._job_folder(job_id)
        tensors, facts = training.state()
        state = {"job_id": job_id, "training": facts, "extra": extra}
        position = (training.step, training.rows_done)
        final = parent / _name(position)
        temporary, aside = _hidden(final, _TEMPORARY), _hidden(final, _ASIDE)

        def reach(stage: str) -> None:
            if self._faults is not None:
                self._faults.reach("checkpoint", stage=stage, job_id=job_id)

        try:
            self._make(parent)
            _settle(parent)
            reach("begin")
            write_files(temporary, tensors, state, reach)
            if final.is_symlink() or final.exists():
                final.rename(aside)
                reach("aside")
            temporary.rename(final)
            sync(parent)
            reach("renamed")
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StateError(f"{final}: the checkpoint cannot be written ({reason})") from error
        finally:
            _tidy(parent)
        self._prune(parent, position, reach)
        return final

    def load(
        self, job_id: str, training: TrainingJob, warn: Callable[[str], None] | None = None
    ) -> dict[str, Any] | None:
        """Restore the newest valid checkpoint into `training`; return its facts.

        They are its `extra`, and its `step` and `rows_done`; None where there is no checkpoint. One
        that is corrupt, half-written or of another job is passed over with a warning that says
        where and why (`warn`: instead of the store's own); StateError, with `training` as it was,
        where there are some and none is valid (`UnreadableError` where the disk did not give one of
        them). Writes nothing.
        """
        parent = self._job_folder(job_id)
        problems = []
        unreadable = False
        for position, path in sorted(_checkpoints(parent).items(), reverse=True):
            try:
                extra = _restore(path, job_id, position, training)
            except StateError as error:
                unreadable = unreadable or isinstance(error, UnreadableError)
                problems.append(f"{path}: {error}")
                (warn or self._warn)(f"checkpoint passed over: {problems[-1]}")
                continue
            return {**extra, "step": position[0], "rows_done": position[1]}
        if problems:
            kind = UnreadableError if unreadable else StateError
            raise kind(f"no checkpoint of job {job_id} is valid: " + "; ".join(problems))
        return None

    def newest(self, job_id: str) -> tuple[Position, Path] | None:
        """Return position and folder of what bears the name of the job's newest checkpoint.

        Nothing of it is read. None where there is none; StateError where that cannot be seen.
        """
        return max(_checkpoints(self._job_folder(job_id)).items(), default=None)

    def unreadable(self, job_id: str) -> str | None:
        """Return why none of a job's checkpoints can be opened.

        Returns None where the job has none, or where one can be opened. Nothing is hashed.
        """
        problem = None
        try:
            for path in _checkpoints(self._job_folder(job_id)).values():
                problem = cannot_be_opened(path)
                if problem is None:
                    return None
        except StateError as error:
            return str(error)
        return problem

    def remove(self, job_id: str) -> None:
        """Delete a job's checkpoints: all of them, or none where that fails (StateError)."""
        parent = self._job_folder(job_id)
        try:
            if parent.exists():
                _delete(parent)
        except OSError as error:
            raise StateError(f"{parent}: cannot be removed ({error.strerror})") from error

    def sweep(self) -> None:
        """Delete what a killed process left half-written or half-deleted.

        Raises StateError where that fails.
        """
        try:
            if not self._folder.is_dir():
                return
            for path in sorted(self._folder.iterdir()):
                if path.is_symlink() or not path.is_dir():
                    continue
                if path.name.startswith(".") and path.name.endswith(_GONE):
                    shutil.rmtree(path)
                elif _JOB_ID.fullmatch(path.name):
                    _settle(path)
        except OSError as error:
            raise StateError(f"{self._folder}: cannot be swept ({error.strerror})") from error

    def job_ids(self) -> list[str]:
        """Return the jobs that have a folder here, with or without a checkpoint in it."""
        if not self._folder.is_dir():
            return []
        return sorted(p.name for p in self._folder.iterdir() if p.is_dir() and _JOB_ID.fullmatch(p.name))

    def _job_folder(self, job_id: str) -> Path:
        if not _JOB_ID.fullmatch(job_id):
            raise UsageError(f"{job_id!r} is no job id (letters, digits, _ . and -, at most 64)")
        folder = self._folder / job_id
        if folder.is_symlink():
            raise UnreadableError(f"{folder}: is a symlink, which is not followed")
        return folder

    def _make(self, parent: Path) -> None:
        if not parent.is_dir():
            # never the folder above: a state folder that is gone is not made anew
            self._folder.mkdir(exist_ok=True)
            parent.mkdir()
            sync(self._folder)

    def _prune(self, parent: Path, saved: Position, reach: Callable[[str], None]) -> None:
        """Delete checkpoints that a new, safe one makes needless.

        What cannot be deleted now costs only space, and will be tried again.
        """
        try:
            found = sorted(_checkpoints(parent), reverse=True)
            later = [position for position in found if position > saved]
            kept = [position for position in found if position <= saved][: self._keep]
            for position in [*later, *(p for p in found if p < kept[-1])]:
                _delete(parent / _name(position))
            reach("pruned")
        except OSError as error:
            self._warn(f"{parent}: old checkpoints cannot be deleted ({error.strerror})")


def _restore(path: Path, job_id: str, position: Position, training: TrainingJob) -> dict[str, Any]:
    slab = training.adapter.slab
    most_bytes = _COPIES * slab.params.numel() * slab.params.element_size() + _HEADER_BYTES
    tensors, state = read_files(path, most_bytes)
    if state.get("job_id") != job_id:
        raise StateError(f"it is of job {state.get('job_id')!r}")
    extra, facts = state.get("extra"), state.get("training")
    if not isinstance(extra, dict) or not isinstance(facts, dict):
        raise StateError("its state is not whole")
    progress = facts.get("progress")
    if not isinstance(progress, dict) or (progress.get("step"), progress.get("rows_done")) != position:
        raise StateError("it is not of the position that its name says")
    training.restore(tensors, facts)
    return extra


def _name(position: Position) -> str:
    return f"{position[0]:010d}-{position[1]:06d}"


def _hidden(path: Path, end: str) -> Path:
    return path.with_name(f".{path.name}{end}")


def _checkpoints(parent: Path) -> dict[Position, Path]:
    """Return what bears the name of a checkpoint, by position.

    A checkpoint that stood aside for one that never came counts, too.
    """
    found: dict[Position, Path] = {}
    try:
        # hidden names first: the final one wins
        names = sorted(path.name for path in parent.iterdir())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UnreadableError(f"{parent}: cannot be read ({error.strerror})") from error
    for name in names:
        shown = name[1 : -len(_ASIDE)] if name.startswith(".") and name.endswith(_ASIDE) else name
        match = _NAME.fullmatch(shown)
        if match and _name(position := (int(match[1]), int(match[2]))) == shown:
            found[position] = parent / name
    return found


def _settle(parent: Path) -> None:
    """Undo what was not finished; raises OSError."""
    for path in sorted(parent.iterdir()):
        match = re.fullmatch(rf"\.({_NAME.pattern})(\.tmp|\.old|\.gone)", path.name)
        if match is None:
            continue
        final = path.with_name(match[1])
        if match[4] == _ASIDE and not final.is_symlink() and not final.exists():
            path.rename(final)
        else:
            _erase(path)


def _tidy(parent: Path) -> None:
    # the error that counts is on its way; the next save or sweep settles what is left
    with contextlib.suppress(OSError):
        _settle(parent)


def _delete(path: Path) -> None:
    """Delete a checkpoint, under a hidden name first.

    So a kill in between never leaves half a checkpoint that looks like a whole one.
    """
    gone = _hidden(path, _GONE)
    _erase(gone)
    path.rename(gone)
    sync(path.parent)
    _erase(gone)


def _erase(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)

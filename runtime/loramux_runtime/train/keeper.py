"""This module keeps a training run on the disk while it goes on, and takes it up again."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from loramux_policies.loop.job import Job
from loramux_runtime.jobs.checkpoint import CheckpointStore
from loramux_runtime.jobs.checkpoint_files import UnreadableError
from loramux_runtime.jobs.saving import Saving
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.train.books import Books
from loramux_runtime.train.faults import NONE, FaultPlan
from loramux_runtime.train.progress import CHECKPOINTS, Progress
from loramux_traces.errors import StateError


class Keeper:
    """Writes checkpoints and commits the books to the journal; a disk that refuses ends nothing.

    `attained_s` returns the service that a job has received up to its position; `settle` brings
    the books up to date; `warn` is told what a user should know.
    """

    def __init__(
        self,
        progress: Progress,
        books: Books,
        training: dict[str, TrainingJob],
        *,
        every_s: float,
        attained_s: Callable[[str], float],
        settle: Callable[[], None],
        warn: Callable[[str], None],
        faults: FaultPlan = NONE,
    ) -> None:
        self._progress, self._books = progress, books
        self._every_s, self._settle = every_s, settle
        self._warn, self._faults = warn, faults
        self._saving = Saving(
            CheckpointStore(progress.folder / CHECKPOINTS, faults=faults, warn=warn),
            self._commit,
            training,
            every_s,
            lambda job_id: True,
            attained_s,
        )
        self._ended: list[str] = []
        """Jobs that have ended; their checkpoints go once the journal knows."""
        self._again_s = 0.0
        """When the disk is tried again, where it has refused."""
        self._told: set[str] = set()
        """Of what it was told that the disk refuses it: it is told once."""

    def begin(self, open_jobs: Iterable[str]) -> None:
        """Delete what a killed process has left of no use; a process begins to train."""
        self._saving.tidy(set(open_jobs), self._warn)

    def take_up(self, job: Job, training: TrainingJob) -> str | None:
        """Bring a job to its newest valid checkpoint; return why that cannot be read now.

        It begins at its first step where it has none.
        """
        try:
            self._saving.load(job, training, self._warn)
        except UnreadableError as error:
            return f"its checkpoint cannot be read now: {error}"
        self._books.take_up(job)
        self._books.restored(job.job_id, training.step)
        return None

    def ended(self, job_id: str) -> None:
        """Note that nothing of the job is needed once the journal knows that it has ended."""
        self._ended.append(job_id)

    def save_as_it_is(self, job_id: str, training: TrainingJob) -> None:
        """Keep the last state of a job whose adapter could not be written, if the disk takes it."""
        try:
            self._commit()
            self._saving.save(job_id, training)
        except StateError as error:
            # the job then goes on from its last checkpoint: the same bits again
            self._warn(f"{job_id}: nor can its checkpoint be written: {error}")

    def boundary(self, now_s: float) -> None:
        """Save and commit what is due at a step boundary."""
        due = self._saving.due(now_s)
        if (not due and not self._books.dirty) or now_s < self._again_s:
            return
        try:
            if self._books.dirty:
                self._commit()
            failed = self._saving.save_due(now_s) if due else []
        except StateError as error:
            failed = [("the progress of the run", str(error))]
        if not failed:
            return
        self._again_s = now_s + self._every_s
        for name, reason in failed:
            if name not in self._told:
                self._told.add(name)
                self._warn(f"{name}: {reason}; training goes on, and it is tried again every {self._every_s:g} s")

    def close(self) -> bool:
        """Save every job and commit the books; return whether all of it is on the disk."""
        try:
            self._commit()
            failed = self._saving.save_all()
        except StateError as error:
            failed = [("the progress of the run", str(error))]
        for name, reason in failed:
            self._warn(f"{name}: {reason}")
        return not failed

    def _commit(self) -> None:
        self._settle()
        news = self._books.news()
        self._faults.reach("commit", stage="before")
        self._progress.journal.commit(**news)
        self._faults.reach("commit", stage="after")
        self._books.kept(news)
        while self._ended:
            self._saving.forget(self._ended.pop(), self._warn)

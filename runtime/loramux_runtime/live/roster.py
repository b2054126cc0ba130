"""This module keeps the jobs of a state folder as the loop and the trainer have them.

It keeps what they have done, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from loramux_policies.loop.intake import Intake
from loramux_policies.loop.job import Job
from loramux_profiles.cost import CostModel
from loramux_runtime.data import JobData, SampleStream, SyntheticData
from loramux_runtime.fused.base_model import BaseModel
from loramux_runtime.jobs.job_data import settings_notes, synthetic_job_data
from loramux_runtime.jobs.job_specs import RowFigures, dtype_of, register_base, spec_of_figures
from loramux_runtime.jobs.jobs_file import TrainJob
from loramux_runtime.jobs.preparation import PreparedJob, check_adapter
from loramux_runtime.jobs.training_job import Log, TrainingJob
from loramux_runtime.live.reading.orders import CHANGED, READ, Before, ReadAnswer, ReadOrder
from loramux_runtime.live.reading.row_files import KeptRows, RowFiles
from loramux_runtime.live.state.book import Book
from loramux_runtime.live.state.job_rows import JobRow
from loramux_traces.errors import LoramuxError, StateError, UsageError
from loramux_traces.file_model import faults
from loramux_traces.filesafe import json_text
from loramux_traces.job import JobSpec
from loramux_traces.results import REJECTED, UNSCHEDULABLE

Make = Callable[[PreparedJob, Log], TrainingJob]
"""Makes a job's training state from its first step; its adapter is on the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """Holds what is needed to train a job once it starts; its rows stay on the disk until then."""

    config: TrainJob
    spec: JobSpec
    kept: Mapping[str, Any] | None
    """Where its rows are kept; None for synthetic ones."""
    train: KeptRows | None
    eval: KeptRows | None
    drawn_by: int


class Roster:
    """Makes jobs of rows of the table, and keeps what is needed to train them until they end."""

    def __init__(
        self,
        base: BaseModel,
        files: RowFiles,
        make: Make,
        cost: CostModel,
        devices: int,
        book: Book,
        *,
        recompute: bool = False,
    ) -> None:
        self._base, self._label, self._recompute = base, register_base(base), recompute
        self._files = files
        self._make = make
        self._book = book
        self._intake = Intake([cost], [devices], oracle=False, unschedulable=self._unschedulable)
        self._entries: dict[str, _Entry] = {}
        self._began = False
        """Whether the job that is being priced has begun in an earlier process."""

    def order(self, row: JobRow, number: int) -> ReadOrder | None:
        """Return the order that has a job's rows read, or None where there is nothing to read."""
        config = json.loads(row["config"])
        if not isinstance(config, dict) or "synthetic" in (config.get("data") or {}):
            return None
        before = None
        if row["data_sha256"] is not None and row["start_s"] is not None:
            before = Before(
                sha256=row["data_sha256"],
                kept=None if row["kept"] is None else json.loads(row["kept"]),
                made_from=json.loads(row["made_from"] or "{}"),
                trusted=bool(row["trusted"]),
            )
        return ReadOrder(
            number=number,
            job_id=row["job_id"],
            config=config,
            folder=row["folder"],
            # the day of the submission, whenever the job is read
            rendered_unix_s=row["submitted_unix_s"],
            vocab_size=self._base.vocab,
            longest_position=self._base.longest_position,
            before=before,
        )

    def job(self, row: JobRow, answer: ReadAnswer | None) -> Job | None:
        """Return the job of a row with what was read for it.

        Returns None where it cannot be trained here; in that case its end, or what it waits for, is
        in the book.
        """
        job_id = row["job_id"]
        if answer is not None and answer.fate != READ:
            self._without_rows(row, answer)
            return None
        try:
            config = TrainJob.model_validate_json(row["config"])
            check_adapter(config, self._base)
            figures = _figures(config, answer)
            spec = spec_of_figures(config, figures, self._label, dtype=dtype_of(self._base), recompute=self._recompute)
            if row["submit_s"] is not None:
                spec = replace(spec, submit_s=row["submit_s"])
            if row["micro_batch"] is not None:
                # the job goes on as it began: another size would be other bits
                spec = replace(spec, micro_batch_size=row["micro_batch"])
            self._began = row["data_sha256"] is not None
            job = self._intake.job(row["seq"], spec)
        except ValidationError as error:
            self._refused(row, "; ".join(map(str, faults(error, json.loads(row["config"]), TrainJob))))
            return None
        except LoramuxError as error:
            self._refused(row, "; ".join(str(error).splitlines()))
            return None
        if job is None:
            return None
        # synthetic rows are drawn by micro-batch: by the first size, also after it has been halved
        drawn_by = row["drawn_by"] or job.cost_on(0).rows
        kept = None if answer is None else answer.kept
        try:
            train, held_out = (self._map(kept, part) for part in ("train", "eval"))
        except StateError as error:
            self._book.hold_apart(job_id, str(error))
            return None
        entry = _Entry(config=config, spec=spec, kept=kept, train=train, eval=held_out, drawn_by=drawn_by)
        made: dict[str, Any] = {}
        if answer is None:
            digest = self._data(entry).train.sha256
            if row["start_s"] is not None and digest != row["data_sha256"]:
                self._book.hold_apart(job_id, f"the way synthetic rows are made {CHANGED}")
                return None
        else:
            digest = answer.sha256
            made = {"kept": json_text(answer.kept), "made_from": json_text(answer.made_from)}
        # of rows that are read the reader has noted it; a job of synthetic ones says its steps
        notes = settings_notes(config, 1) if answer is None else answer.notes
        if notes:
            made["notes"] = "; ".join(notes)
        self._entries[job_id] = entry
        _go_on(job, row)
        self._book.set(
            job_id,
            data_sha256=digest,
            micro_batch=job.cost_on(0).rows,
            drawn_by=drawn_by,
            predicted_bytes=job.need_bytes,
            total_steps=round(config.steps or job.declared_steps),
            **made,
        )
        return job

    def _without_rows(self, row: JobRow, answer: ReadAnswer) -> None:
        """Say in the book why a job's rows cannot be trained on."""
        if answer.fate == "refused":
            self._refused(row, answer.reason)
        else:
            self._book.hold_apart(row["job_id"], answer.reason)

    def _refused(self, row: JobRow, reason: str) -> None:
        if row["data_sha256"] is None:
            self._book.end_apart(row["job_id"], REJECTED, reason)
        else:
            # a disk that is not there, for example: what the job has learned is kept
            self._book.hold_apart(row["job_id"], f"its data cannot be read any more: {reason}")

    def halved(self, job: Job) -> Job | None:
        """Return the same job with half the rows in its micro-batches.

        Returns None where one row is all there is.
        """
        rows = job.cost_on(0).rows
        if rows == 1:
            return None
        spec = replace(job.spec, micro_batch_size=max(1, rows // 2))
        smaller = self._intake.job(job.index, spec)
        if smaller is not None:
            self._book.set(job.job_id, micro_batch=max(1, rows // 2), predicted_bytes=smaller.need_bytes)
        return smaller

    def training(self, job_id: str, log: Callable[[str, dict[str, Any]], None]) -> tuple[object, TrainingJob]:
        """Return what a job's training state is made from, and the state at its first step.

        Its adapter is on the host. This may be called in a thread.
        """
        entry = self._entries[job_id]
        prepared = PreparedJob(config=entry.config, data=self._data(entry), spec=entry.spec)
        return entry, self._make(prepared, lambda record: log(job_id, record))

    def is_made_from(self, job_id: str, entry: object) -> bool:
        """Return whether a job is still the one that a state was made for (`training`)."""
        return self._entries.get(job_id) is entry

    def rows_bytes(self, job_id: str) -> int:
        """Return the bytes of the rows that a job has on the disk."""
        entry = self._entries[job_id]
        return sum(kept.tokens.ids.nbytes for kept in (entry.train, entry.eval) if kept is not None)

    def _data(self, entry: _Entry) -> JobData:
        config = entry.config
        if isinstance(config.data, SyntheticData):
            return synthetic_job_data(config, self._base.vocab).bound(entry.drawn_by)
        assert entry.train is not None
        train = entry.train.rows()
        return JobData(
            train=train,
            stream=SampleStream(len(train), config.seed, config.data.shuffle),
            eval=None if entry.eval is None else entry.eval.rows(),
            report=None,
            eval_report=None,
            held_out_copies=0,
        )

    def _map(self, kept: Mapping[str, Any] | None, part: str) -> KeptRows | None:
        return None if kept is None or kept[part] is None else self._files.open(kept[part])

    def kept(self) -> list[Mapping[str, Any]]:
        """Return where the rows of all jobs are kept that this process knows."""
        found = [entry.kept for entry in self._entries.values() if entry.kept is not None]
        return [part for kept in found for part in kept.values() if part is not None]

    def forget(self, job_id: str) -> None:
        """Forget a job that has ended."""
        self._entries.pop(job_id, None)

    def _unschedulable(self, index: int, spec: JobSpec, reason: str) -> None:
        if self._began:
            # there is less memory than the job began on
            self._book.hold_apart(spec.job_id, reason)
        else:
            self._book.end_apart(spec.job_id, UNSCHEDULABLE, reason)


def _figures(config: TrainJob, answer: ReadAnswer | None) -> RowFigures:
    if answer is not None:
        return RowFigures(answer.rows, answer.mean_tokens, max(answer.p95_tokens, answer.mean_tokens))
    if not isinstance(config.data, SyntheticData) or config.steps is None:
        raise UsageError(f"job {config.id}: its rows have not been read")
    said = config.data.synthetic
    return RowFigures(config.steps * config.batch_size, said.seq_len, said.seq_len_p95, said.length_dist)


def _go_on(job: Job, row: JobRow) -> None:
    """Give a new record of a job what an earlier one had come to."""
    job.done_steps = row["progress_steps"]
    job.attained_s = row["attained_s"]
    job.paused_s = row["paused_s"]
    job.preemptions = row["preemptions"]
    job.oom_events = row["oom_events"]
    if row["start_s"] is not None:
        job.first_start_s = row["start_s"]
        job.last_stop_s = row["start_s"] if row["stopped_s"] is None else row["stopped_s"]

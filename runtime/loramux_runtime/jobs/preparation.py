"""This module turns a job's configuration into what the scheduler and the trainer need.

That is its rows, and the job as a row of a trace.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from loramux_runtime.data import JobData, load_tokenizer
from loramux_runtime.fused.adapters.methods import METHODS
from loramux_runtime.fused.base_model import BaseModel
from loramux_runtime.jobs.job_data import job_data
from loramux_runtime.jobs.job_specs import job_spec, register_base
from loramux_runtime.jobs.jobs_file import TrainJob
from loramux_traces.errors import UsageError
from loramux_traces.job import JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedJob:
    """A prepared job is one whose rows are read and whose adapter fits the base model."""

    config: TrainJob
    data: JobData
    spec: JobSpec


class Preparation:
    """Preparation checks jobs against one base model before anything of them is trained."""

    def __init__(self, base: BaseModel, tokenizer_path: Path | None, *, recompute: bool = False) -> None:
        self._base = base
        self._tokenizer = load_tokenizer(tokenizer_path)
        self._label = register_base(base)
        self._recompute = recompute

    def prepare(
        self,
        job: TrainJob,
        folder: Path,
        *,
        submit_s: float | None = None,
        rendered_at: datetime | None = None,
    ) -> PreparedJob:
        """Return the job with its rows read.

        `folder` is where its relative paths start; `submit_s` is used instead of the job's own.
        `rendered_at` is the time that a chat template with a date is told (None: now); a job that
        is to find its rows again gives the same.

        Raises UsageError where the adapter does not fit the base, InvalidInputError where the rows
        cannot be used.
        """
        self.check_adapter(job)
        data = job_data(job, self._tokenizer, vocab_size=self._base.vocab, base=folder, rendered_at=rendered_at)
        spec = job_spec(job, data, self._label, self._base, self._recompute)
        if submit_s is not None:
            spec = replace(spec, submit_s=submit_s)
        return PreparedJob(config=job, data=data, spec=spec)

    def check_adapter(self, job: TrainJob) -> None:
        """Raise UsageError where the adapter does not fit the base."""
        check_adapter(job, self._base)


def check_adapter(job: TrainJob, base: BaseModel) -> None:
    """Raise UsageError where a job's adapter does not fit a base."""
    method, config = METHODS[job.method], job.adapter_config
    try:
        # Not the tensors: 1,024 experts on every linear of a 7B model take seconds to list
        method.structure(config, base.sites)
        method.plans(config, base.sites)
    except ValueError as error:
        raise UsageError(f"job {job.id}: {error}") from error

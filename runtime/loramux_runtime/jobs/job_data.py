"""This module gets the rows of a job, whatever its data settings say."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from loramux_runtime.data import JobData, SyntheticData, Tokenizer, load_data, synthetic_data
from loramux_runtime.data.load import OnProgress, Tokenise
from loramux_runtime.jobs.jobs_file import TrainJob


def job_data(
    job: TrainJob,
    tokenizer: Tokenizer,
    *,
    vocab_size: int,
    base: Path | None = None,
    roots: Sequence[Path] | None = None,
    rendered_at: datetime | None = None,
    progress: OnProgress | None = None,
    tokenise: Tokenise | None = None,
) -> JobData:
    """Return the job's rows, from its file or synthetic.

    Arguments and errors are those of `load_data`. Synthetic rows are those of the micro-batch size
    that the job asks for, until `JobData.bound` makes them those of the size that it gets.
    """
    if not isinstance(job.data, SyntheticData):
        return load_data(
            job.data,
            tokenizer,
            vocab_size=vocab_size,
            seed=job.seed,
            base=base,
            roots=roots,
            rendered_at=rendered_at,
            progress=progress,
            tokenise=tokenise,
        )
    return synthetic_job_data(job, vocab_size)


def synthetic_job_data(job: TrainJob, vocab_size: int) -> JobData:
    """Return the rows of a job whose data settings are `synthetic`."""
    assert isinstance(job.data, SyntheticData) and job.steps is not None  # the jobs file has checked it
    return synthetic_data(
        job.data.synthetic,
        job.id,
        rows=job.steps * job.batch_size,
        micro_batch=job.micro_batch_size or job.batch_size,
        vocab_size=vocab_size,
        seed=job.seed,
    )

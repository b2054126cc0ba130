"""This module gets the rows of a job, whatever its data settings say."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from loramux_runtime.data import JobData, SyntheticData, TokenisedRows, Tokenizer, load_data, synthetic_data
from loramux_runtime.data.load import OnProgress, Tokenise
from loramux_runtime.jobs.jobs_file import TrainJob
from loramux_traces.decimals import steps_of_epochs


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


def total_steps(config: TrainJob, n_rows: int) -> int:
    """Return the optimizer steps that a job declares, on so many rows."""
    return config.steps or steps_of_epochs(n_rows, config.epochs or 0, config.batch_size)


def settings_notes(job: TrainJob, n_rows: int) -> tuple[str, ...]:
    """Return what a job's settings ask for that it is too short for, on so many rows."""
    steps = total_steps(job, n_rows)
    has = f"the job has {steps:,} step{'s' if steps > 1 else ''}"
    notes = []
    warmup, every = job.schedule.warmup_steps, job.evaluation.every_steps
    if warmup > steps:
        highest = job.optimizer.lr * steps / warmup
        notes.append(
            f"schedule.warmup_steps is {warmup:,} and {has}: its learning rate ends at {highest:.3g}, and never "
            f"gets to the {job.optimizer.lr:.3g} of optimizer.lr"
        )
    if every is not None and every > steps:
        notes.append(f"evaluation.every_steps is {every:,} and {has}: it is evaluated at its start and its end alone")
    return tuple(notes)


def data_notes(data: JobData, most: int | None) -> tuple[str, ...]:
    """Return what there is to say of a job's rows; `most`: tokens that the base was made for.

    A base may take longer rows than it was made for, and its answers get worse there.
    """
    notes = [str(data.report)]
    notes += [f"held out: {data.eval_report}"] if data.eval_report is not None else []
    if data.held_out_copies:
        notes.append(f"{data.held_out_copies} rows are not trained on: a held-out row has the same tokens")
    if most is not None and isinstance(data.train, TokenisedRows):
        longer = int(np.count_nonzero(data.train.lengths > most))
        if longer:
            longest = int(data.train.lengths.max())
            notes.append(
                f"{longer} rows are longer than the {most} tokens that the base model was made for "
                f"(max_position_embeddings); the longest has {longest}. data.max_tokens cuts them"
            )
    return tuple(notes)

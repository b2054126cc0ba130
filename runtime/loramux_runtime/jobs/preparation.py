"""This module turns a job's configuration into what the scheduler and the trainer need.

That is its rows, and the job as a row of a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from loramux_runtime.data import JobData, load_tokenizer
from loramux_runtime.data.load import Tokenise
from loramux_runtime.fused.adapters.methods import METHODS
from loramux_runtime.fused.base_model import BaseModel
from loramux_runtime.fused.sites import NoSuchLinearError
from loramux_runtime.jobs.job_data import data_notes, job_data, settings_notes
from loramux_runtime.jobs.job_specs import job_spec, register_base
from loramux_runtime.jobs.jobs_file import TrainJob, problem_of
from loramux_runtime.jobs.shared_rows import SharedRows
from loramux_traces.errors import Interrupted, InvalidInputError, UsageError, printable
from loramux_traces.file_model import Fault
from loramux_traces.job import JobSpec

T = TypeVar("T")
MOST_PROBLEMS: Final = 100
"""Lines of an error about several jobs; the others are counted."""
_MOST_NAMED: Final = 5
"""Jobs named in front of one and the same error; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedJob:
    """A prepared job is one whose rows are read and whose adapter fits the base model."""

    config: TrainJob
    data: JobData
    spec: JobSpec
    warnings: tuple[str, ...] = ()
    """What of its settings cannot come about."""
    notes: tuple[str, ...] = ()
    """What its user should know of its rows: how many were cut or left out, columns not used."""


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
        tokenise: Tokenise | None = None,
    ) -> PreparedJob:
        """Return the job with its rows read.

        `folder` is where its relative paths start; `submit_s` is used instead of the job's own.
        `rendered_at` is the time that a chat template with a date is told (None: now); a job that
        is to find its rows again gives the same. `tokenise` makes the rows of a file (`load_data`).

        Raises UsageError where the adapter does not fit the base, InvalidInputError where the rows
        cannot be used.
        """
        check_adapter(job, self._base)
        data = job_data(
            job,
            self._tokenizer,
            vocab_size=self._base.vocab,
            base=folder,
            rendered_at=rendered_at,
            tokenise=tokenise,
        )
        spec = job_spec(job, data, self._label, self._base, self._recompute)
        if submit_s is not None:
            spec = replace(spec, submit_s=submit_s)
        warnings = settings_notes(job, len(data.train))
        notes = data_notes(data, self._base.longest_position)
        return PreparedJob(config=job, data=data, spec=spec, warnings=warnings, notes=notes)

    def prepare_all(
        self,
        jobs: Sequence[TrainJob],
        folder: Path,
        *,
        rendered_at: datetime | None = None,
        source: Path | None = None,
    ) -> list[PreparedJob]:
        """Return the jobs with their rows read, in order.

        Arguments are those of `prepare`, and `source` is the file that the jobs are of. Adapters
        are checked first, because that is cheap. Raises UsageError that names every bad job, and
        says what is wrong with it.
        """

        at, rows = rendered_at or datetime.now(UTC), SharedRows()

        def prepare(job: TrainJob) -> PreparedJob:
            return self.prepare(job, folder, rendered_at=at, tokenise=rows.tokenise)

        bad: dict[str, str] = {}
        for job in jobs:
            _note(bad, job, lambda job: check_adapter(job, self._base, source))
        prepared = [_note(bad, job, prepare) for job in jobs if job.id not in bad]
        if bad:
            raise UsageError(_all_of(bad))
        return [job for job in prepared if job is not None]


def check_adapter(job: TrainJob, base: BaseModel, source: Path | None = None) -> None:
    """Raise UsageError where a job's adapter does not fit a base.

    It says where, if the job is one of the jobs file `source`.
    """
    method, config = METHODS[job.method], job.adapter_config
    try:
        # Not the tensors: 1,024 experts on every linear of a 7B model take seconds to list
        method.structure(config, base.sites)
        method.plans(config, base.sites)
    except ValueError as error:
        said = Fault(("adapter",), None, str(error))
        if isinstance(error, NoSuchLinearError):  # MixLoRA names linears of the attention only
            place = ("adapter", *(() if hasattr(config, "target_modules") else ("attention",)), "target_modules")
            said = Fault(place, error.value, error.allowed)
        raise UsageError(f"job {job.id}: {said if source is None else problem_of(source, job.id, said)}") from error


def _note(bad: dict[str, str], job: TrainJob, do: Callable[[TrainJob], T]) -> T | None:
    """Return what `do` makes of the job, or None after noting what is wrong with it."""
    try:
        return do(job)
    except (UsageError, InvalidInputError) as error:
        bad[job.id] = str(error)
    except MemoryError:
        bad[job.id] = "reading its rows takes more memory than there is"
    except (Interrupted, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        bad[job.id] = f"it cannot be prepared: {type(error).__name__}: {printable(' '.join(str(error).split()), 200)}"
    return None


def _all_of(bad: dict[str, str]) -> str:
    """Return the error about all bad jobs; those with one and the same fault share its lines."""
    by_fault: dict[str, list[str]] = {}
    for job_id, said in bad.items():
        by_fault.setdefault(said.removeprefix(f"job {job_id}: "), []).append(job_id)
    lines = []
    for said, job_ids in by_fault.items():
        names = ", ".join(job_ids[:_MOST_NAMED])
        names += f" and {len(job_ids) - _MOST_NAMED:,} more" if len(job_ids) > _MOST_NAMED else ""
        first, *rest = said.splitlines()
        lines += [f"{'job' if len(job_ids) == 1 else 'jobs'} {names}: {first}", *(f"  {line}" for line in rest)]
    more = [f"... and {len(lines) - MOST_PROBLEMS:,} more lines"] if len(lines) > MOST_PROBLEMS else []
    return "\n".join(lines[:MOST_PROBLEMS] + more)

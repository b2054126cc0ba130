"""A jobs.yaml names the base model and the jobs of `loramux train`.

This module reads and validates it; the file is data, never code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from loramux_profiles.datafiles import problem
from loramux_runtime.data import DataConfig, SyntheticData
from loramux_runtime.jobs.adapter_fields import adapter_config
from loramux_runtime.jobs.other_names import elsewhere
from loramux_traces import limits
from loramux_traces.documents import read_document
from loramux_traces.errors import InvalidInputError, Problem
from loramux_traces.file_model import Fault, LineOf, validate
from loramux_traces.files import MAX_SMALL, real_path
from loramux_traces.job_types import (
    Dropout,
    Epochs,
    JobId,
    LearningRate,
    Method,
    Positive,
    Priority,
    ReadNumber,
    ReadText,
    Rows,
    Seed,
    Submit,
    Text,
    WholeSteps,
    broken_rule,
    is_absent,
    plain_text,
    without_blanks,
)
from loramux_traces.parse_rows import NOT_EPOCH, epoch_times
from loramux_traces.yaml_core import Document

__all__ = [
    "BaseConfig",
    "EvaluationConfig",
    "JobsFile",
    "OptimizerConfig",
    "ScheduleConfig",
    "Submission",
    "TrainJob",
    "adapter_config",
    "read_base",
    "read_jobs",
    "read_jobs_file",
]


def _one_kind(data: Any) -> Any:
    """Return the data settings as the one kind that they are meant to be.

    So errors speak of that kind only.
    """
    if not isinstance(data, dict):
        return data
    if "synthetic" not in data:
        return DataConfig.model_validate(data)
    if "path" in data:
        raise ValueError("give path (rows of a file) or synthetic (rows by their lengths alone), not both")
    return SyntheticData.model_validate(data)


_HELD_OUT = "give data.eval_rows, eval_fraction or eval_path"
_NULL_SAYS = frozenset(("max_grad_norm",))
"""Fields in which null is a value of its own, and not the default."""
Data = Annotated[DataConfig | SyntheticData, BeforeValidator(_one_kind)]


class _Strict(BaseModel):
    """A _Strict is a part of the file: every field is known, and null or a blank is its default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def elsewhere(cls, name: str, within: Sequence[str | int]) -> str:
        """Return what `other_names` says of a field that is not known at that place of a file."""
        return elsewhere(name, within[2:] if within[:1] == ["jobs"] else within)

    @model_validator(mode="before")
    @classmethod
    def _without_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        said = {key: value for key, value in data.items() if key in _NULL_SAYS or not is_absent(value)}
        return {key: value if key == "path" else without_blanks(value) for key, value in said.items()}


class OptimizerConfig(_Strict):
    """The optimizer is AdamW or SGD, as torch.optim has them."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[LearningRate, ReadNumber] = 2e-4
    weight_decay: Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False), ReadNumber] = 0.0
    betas: tuple[Annotated[Dropout, ReadNumber], Annotated[Dropout, ReadNumber]] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), ReadNumber] = 1e-8
    momentum: Annotated[Dropout, ReadNumber] = 0.0
    """Momentum, which SGD alone uses."""

    @model_validator(mode="after")
    def _has_effect(self) -> OptimizerConfig:
        fields = type(self).model_fields
        for key in ("momentum",) if self.name == "adamw" else ("betas", "eps"):
            if getattr(self, key) != fields[key].default:
                raise broken_rule(key, f"has no effect on {self.name}: must be left out")
        return self


class ScheduleConfig(_Strict):
    """The schedule sets the learning rate over the declared steps."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0, le=limits.MAX_STEPS), ReadNumber] = 0


class EvaluationConfig(_Strict):
    """Evaluation gives the loss on held-out rows (data.eval_*), and may stop the job early."""

    every_steps: Annotated[WholeSteps, ReadNumber] | None = None
    """Optimizer steps between two evaluations; omitted: at the start and at the end only."""
    patience: Annotated[WholeSteps, ReadNumber] | None = None
    """Evaluations in a row without an improvement after which the job stops."""
    min_improvement: Annotated[float, Field(ge=0, le=limits.LARGEST, allow_inf_nan=False), ReadNumber] = 0.0

    @model_validator(mode="after")
    def _needs_evaluations(self) -> EvaluationConfig:
        if self.patience is not None and self.every_steps is None:
            raise ValueError("patience needs every_steps")
        if self.min_improvement and self.patience is None:
            raise broken_rule("min_improvement", "has no effect without patience: must be left out")
        return self


class TrainJob(_Strict):
    """A training job has exactly one of `steps` (optimizer steps) and `epochs`."""

    id: Annotated[JobId, ReadText]
    method: Method = "lora"
    adapter: dict[str, Any] = Field(default_factory=dict)
    """Fields of the method's configuration (`fused.adapters`).

    For example rank, alpha, dropout, target_modules.
    """
    data: Data
    """A file (`data.DataConfig`), or `synthetic` (`data.SyntheticConfig`): lengths alone."""
    batch_size: Annotated[Rows, ReadNumber] = 8
    """Rows per optimizer step."""
    micro_batch_size: Annotated[Rows, ReadNumber] | None = None
    """Rows per fused step; omitted: the largest batch_size / 2^i that fits the device alone."""
    steps: Annotated[WholeSteps, ReadNumber] | None = None
    epochs: Annotated[Epochs, ReadNumber] | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    max_grad_norm: Annotated[Positive, ReadNumber] | None = 1.0
    """Norm that the job's gradient is clipped to; null: no clipping."""
    evaluation: EvaluationConfig = EvaluationConfig()
    submit_s: Annotated[Submit, ReadNumber] = 0.0
    priority: Annotated[Priority, ReadNumber] = 0
    user: Annotated[Text, ReadText] = ""
    group: Annotated[Text, ReadText] = ""
    seed: Annotated[Seed, ReadNumber] = 0

    @model_validator(mode="after")
    def _consistent(self) -> TrainJob:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise broken_rule("micro_batch_size", "must not exceed batch_size")
        if isinstance(self.data, SyntheticData) and self.steps is None:
            raise ValueError("synthetic data have no epochs: give steps")
        if self.evaluation.every_steps is not None and not self._holds_rows_out:
            rows = "synthetic data have none" if isinstance(self.data, SyntheticData) else _HELD_OUT
            raise broken_rule("evaluation.every_steps", f"has no effect without held-out rows: {rows}")
        adapter_config(self.method, self.adapter)
        return self

    @property
    def _holds_rows_out(self) -> bool:
        data = self.data
        if isinstance(data, SyntheticData):
            return False
        return any(value is not None for value in (data.eval_path, data.eval_rows, data.eval_fraction))

    @property
    def adapter_config(self) -> Any:
        """The configuration object of the job's method."""
        return adapter_config(self.method, self.adapter)


class BaseConfig(_Strict):
    """The base has exactly one source: a folder, a shape or a configuration.

    It is a local model folder, a named shape, or a transformers configuration with random weights.
    """

    path: Path | None = None
    shape: str | None = None
    config: dict[str, Any] | None = None
    """`model_type` and its fields, for a tiny model."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    seed: Annotated[Seed, ReadNumber] = 0
    """Seed of the random weights."""

    @model_validator(mode="after")
    def _one_source(self) -> BaseConfig:
        if sum(source is not None for source in (self.path, self.shape, self.config)) != 1:
            raise ValueError("give exactly one of path, shape and config")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs a model_type, for example llama")
        return self


def _not_too_many(jobs: Any) -> Any:
    # before they are looked at: 1 MiB of `1,` is half a million bad jobs, whose errors take 5.5 s
    if isinstance(jobs, list) and len(jobs) > limits.MAX_JOBS:
        raise ValueError(f"must have at most {limits.MAX_JOBS:,} members, not {len(jobs):,}")
    return jobs


class Submission(_Strict):
    """A submission is jobs by themselves, as `loramux submit` takes them."""

    jobs: Annotated[tuple[TrainJob, ...], Field(min_length=1), BeforeValidator(_not_too_many)]

    read_before: ClassVar = ("defaults",)

    @classmethod
    def elsewhere(cls, name: str, within: Sequence[str | int]) -> str:
        """Say of a job's field at the top of the file where it belongs."""
        if not within and name in TrainJob.model_fields:
            return "it stands in a job, or in defaults for all jobs"
        return super().elsewhere(name, within)

    @model_validator(mode="after")
    def _unique(self) -> Submission:
        seen: set[str] = set()
        for index, job in enumerate(self.jobs):
            if job.id in seen:
                raise broken_rule(f"jobs.{index}.id", f"job id used twice: {job.id}")
            seen.add(job.id)
        for index in epoch_times([job.submit_s for job in self.jobs]):
            raise broken_rule(f"jobs.{index}.submit_s", NOT_EPOCH)
        return self


class JobsFile(Submission):
    """A jobs file is what `loramux train` runs."""

    base: BaseConfig
    folder: Annotated[Path, Field(exclude=True)] = Path()
    """Where relative paths start: the folder of the file."""
    source: Annotated[Path | None, Field(exclude=True)] = None
    """The file itself."""


def read_jobs_file(path: str | Path) -> JobsFile:
    """Read and check a jobs.yaml (or .json).

    `defaults` is merged under every job; relative paths start at the file.

    Raises InvalidInputError with one problem per bad key, with its line in a YAML file.
    """
    file = Path(path)
    document = _document(file)
    checked = validate(JobsFile, file, _jobs_merged(file, document), _lines(document))
    folder = checked.base.path
    base = checked.base.model_copy(update={"path": None if folder is None else file.parent / folder})
    return checked.model_copy(update={"folder": file.parent, "source": file, "base": base})


def read_jobs(path: str | Path) -> tuple[TrainJob, ...]:
    """Return the jobs of a jobs.yaml, whatever its base, or the one job that the file is.

    Raises as `read_jobs_file`.
    """
    file = Path(path)
    document = _document(file)
    content = _jobs_merged(file, document)
    content.pop("base", None)
    if "jobs" not in content:
        job = validate(TrainJob, file, content, document.line_of)
        if epoch_times([job.submit_s]):
            line = document.line_of(("submit_s",))
            raise InvalidInputError([problem(file, "submit_s", job.submit_s, NOT_EPOCH, line)])
        return (job,)
    return validate(Submission, file, content, _lines(document)).jobs


def read_base(path: str | Path) -> BaseConfig:
    """Return the base of a jobs.yaml, its path made absolute.

    Raises as `read_jobs_file`.
    """
    file = Path(path)
    document = _document(file)
    base = validate(BaseConfig, file, document.value.get("base", {}), lambda loc: document.line_of(("base", *loc)))
    return base if base.path is None else base.model_copy(update={"path": real_path(file.parent / base.path)})


def _document(file: Path) -> Document:
    document = read_document(file, MAX_SMALL, "a jobs file")
    if not isinstance(document.value, dict) or document.value.keys() & {"folder", "source"}:
        raise InvalidInputError([problem(file, "", "", "must hold a mapping with base and jobs")])
    return document


def _lines(document: Document) -> LineOf:
    """Return what says where a value of a job stands, be it in the job or in the defaults."""

    def line_of(path: tuple[str | int, ...]) -> int:
        own, shared = document.line_of(path), 0
        if path[:1] == ("jobs",) and len(path) > 2 and not document.has(path):
            shared = document.line_of(("defaults", *path[2:])) if document.has(("defaults", *path[2:])) else 0
        return shared or own

    return line_of


def problem_of(file: Path, job_id: str, fault: Fault) -> Problem:
    """Return what is wrong with a job of a jobs file, with the line on which it says so."""
    document = _document(file)
    ids = [
        str(plain_text(job.get("id"))).strip() if isinstance(job, dict) else ""
        for job in document.value.get("jobs", ())
    ]
    line = _lines(document)(("jobs", ids.index(job_id), *fault.place)) if job_id in ids else 0
    return problem(file, fault.field, fault.value, fault.allowed, line)


def _jobs_merged(file: Path, document: Document) -> dict[str, Any]:
    content = dict(document.value)
    defaults = content.pop("defaults", None)
    jobs = content.get("jobs")
    if defaults is None:
        return content
    if not isinstance(defaults, dict):
        line = document.line_of(("defaults",))
        raise InvalidInputError([problem(file, "defaults", "", "must be a mapping", line)])
    if isinstance(jobs, list):
        content["jobs"] = [_merged(defaults, job) if isinstance(job, dict) else job for job in jobs]
    return content


_SOURCES = frozenset(("path", "synthetic"))


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge `over` on top of `under`.

    A job with a source of data of its own takes nothing from one of the other kind.
    """
    sources = (_SOURCES & under.keys(), _SOURCES & over.keys())
    result = {} if all(sources) and sources[0] != sources[1] else dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result

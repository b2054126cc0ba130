"""A jobs.yaml names the base model and the jobs of `loramux train`.

This module reads and validates it; the file is data, never code.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from loramux_profiles.datafiles import problem
from loramux_profiles.file_model import validate
from loramux_runtime.data import DataConfig, SyntheticData
from loramux_runtime.fused.adapters.configs import CONFIGS
from loramux_traces.errors import InvalidInputError

MAX_BYTES = 16 << 20
JobId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]


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


Data = Annotated[DataConfig | SyntheticData, BeforeValidator(_one_kind)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimizerConfig(_Strict):
    """The optimizer is AdamW or SGD, as torch.optim has them."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0, le=1e3, allow_inf_nan=False)] = 2e-4
    weight_decay: Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)] = 0.0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1e-8
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum, which SGD alone uses."""


class ScheduleConfig(_Strict):
    """The schedule sets the learning rate over the declared steps."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0


class EvaluationConfig(_Strict):
    """Evaluation gives the loss on held-out rows (data.eval_*), and may stop the job early."""

    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between two evaluations; omitted: at the start and at the end only."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Evaluations in a row without an improvement after which the job stops."""
    min_improvement: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @model_validator(mode="after")
    def _needs_evaluations(self) -> EvaluationConfig:
        if self.patience is not None and self.every_steps is None:
            raise ValueError("patience needs every_steps")
        return self


class TrainJob(_Strict):
    """A training job has exactly one of `steps` (optimizer steps) and `epochs`."""

    id: JobId
    method: Literal["lora", "mixlora", "mola", "loramoe", "dynmole"] = "lora"
    adapter: dict[str, Any] = Field(default_factory=dict)
    """Fields of the method's configuration (`fused.adapters`).

    For example rank, alpha, dropout, target_modules.
    """
    data: Data
    """A file (`data.DataConfig`), or `synthetic` (`data.SyntheticConfig`): lengths alone."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 8
    """Rows per optimizer step."""
    micro_batch_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Rows per fused step; omitted: the largest batch_size / 2^i that fits the device alone."""
    steps: Annotated[int, Field(ge=1, le=10**9)] | None = None
    epochs: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    max_grad_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 1.0
    """Norm that the job's gradient is clipped to; null: no clipping."""
    evaluation: EvaluationConfig = EvaluationConfig()
    submit_s: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = 0
    user: str = ""
    group: str = ""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> TrainJob:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError("micro_batch_size must not exceed batch_size")
        if isinstance(self.data, SyntheticData) and self.steps is None:
            raise ValueError("synthetic data have no epochs: give steps")
        adapter_config(self.method, self.adapter)
        return self

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
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the random weights."""

    @model_validator(mode="after")
    def _one_source(self) -> BaseConfig:
        if sum(source is not None for source in (self.path, self.shape, self.config)) != 1:
            raise ValueError("give exactly one of path, shape and config")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs a model_type, for example llama")
        return self


class Submission(_Strict):
    """A submission is jobs by themselves, as `loramux submit` takes them."""

    jobs: Annotated[tuple[TrainJob, ...], Field(min_length=1, max_length=10_000)]

    @model_validator(mode="after")
    def _unique(self) -> Submission:
        ids = [job.id for job in self.jobs]
        again = sorted({job_id for job_id in ids if ids.count(job_id) > 1})
        if again:
            raise ValueError(f"job id used twice: {', '.join(again[:5])}")
        return self


class JobsFile(Submission):
    """A jobs file is what `loramux train` runs."""

    base: BaseConfig
    folder: Annotated[Path, Field(exclude=True)] = Path()
    """Where relative paths start: the folder of the file."""


def adapter_config(method: str, fields: dict[str, Any]) -> Any:
    """Return the configuration dataclass of a method.

    Raises ValueError, which names an unknown or wrong field.
    """
    return _configured(CONFIGS[method], fields, "adapter")


def _configured(kind: type[Any], fields: dict[str, Any], where: str) -> Any:
    known = list(kind.__dataclass_fields__)
    for name in fields:
        if name not in known:
            close = get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f" (known: {', '.join(known)})"
            raise ValueError(f"{where} has no field {name!r}{hint}")
    values = dict(fields)
    if isinstance(values.get("attention"), dict):
        values["attention"] = _configured(CONFIGS["lora"], values["attention"], f"{where}.attention")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join([where, *(str(part) for part in first["loc"])])
        raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from error


def read_jobs_file(path: str | Path) -> JobsFile:
    """Read and check a jobs.yaml (or .json).

    `defaults` is merged under every job; relative paths start at the file.

    Raises InvalidInputError with one problem per bad key.
    """
    file = Path(path)
    checked = validate(JobsFile, file, _jobs_merged(file, _mapping(file)))
    folder = checked.base.path
    base = checked.base.model_copy(update={"path": None if folder is None else file.parent / folder})
    return checked.model_copy(update={"folder": file.parent, "base": base})


def read_jobs(path: str | Path) -> tuple[TrainJob, ...]:
    """Return the jobs of a jobs.yaml, whatever its base, or the one job that the file is.

    Raises as `read_jobs_file`.
    """
    file = Path(path)
    content = _jobs_merged(file, _mapping(file))
    content.pop("base", None)
    if "jobs" not in content:
        return (validate(TrainJob, file, content),)
    return validate(Submission, file, content).jobs


def read_base(path: str | Path) -> BaseConfig:
    """Return the base of a jobs.yaml, its path made absolute.

    Raises as `read_jobs_file`.
    """
    file = Path(path)
    base = validate(BaseConfig, file, _mapping(file).get("base", {}))
    return base if base.path is None else base.model_copy(update={"path": (file.parent / base.path).resolve()})


def _mapping(file: Path) -> dict[str, Any]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InvalidInputError([problem(file, "", "", f"cannot be read: {error.strerror or error}")]) from error
    if len(data) > MAX_BYTES:
        raise InvalidInputError([problem(file, "", "", f"must be at most {MAX_BYTES >> 20} MiB")])
    try:
        content = yaml.safe_load(data.decode("utf-8-sig"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise InvalidInputError([problem(file, "", "", f"must be YAML: {error.problem}", line)]) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InvalidInputError([problem(file, "", "", f"must be UTF-8 YAML: {str(error)[:100]}")]) from error
    if not isinstance(content, dict) or "folder" in content:
        raise InvalidInputError([problem(file, "", "", "must hold a mapping with base and jobs")])
    return content


def _jobs_merged(file: Path, content: dict[str, Any]) -> dict[str, Any]:
    defaults = content.pop("defaults", {})
    jobs = content.get("jobs")
    if not isinstance(defaults, dict):
        raise InvalidInputError([problem(file, "defaults", "", "must be a mapping")])
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

"""Define what a job is: one row of jobs.csv, validated.

The names follow Helios/Acme (`job_id`, `user`) and carry their units. A `JobSpec` is data: no code,
no environment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic.dataclasses import dataclass as validated
from pydantic_core import PydanticCustomError

from loramux_traces.decimals import steps_of_epochs

JobId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:/+-]{0,127}$")]
# A name, or a path: absolute, or beginning with a name, ./ or ../.
Model = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./][A-Za-z0-9_.:/+-]{0,254}$")]
# Free text that is only shown: no control or direction-changing characters (it reaches terminals
# and spreadsheets).
_HIDDEN = r"\p{Cc}\u{2028}\u{2029}\u{202A}-\u{202E}\u{2066}-\u{2069}"
Text = Annotated[str, StringConstraints(max_length=256, pattern=rf"^([^\s{_HIDDEN}]([^{_HIDDEN}]*[^\s{_HIDDEN}])?)?$")]
# Bounds keep every product and quotient of two columns a finite float, so that no result can become
# inf or NaN.
Seconds = Annotated[float, Field(ge=1e-9, le=1e10, allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=1e-12, le=1e12, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Method = Literal["lora", "mixlora", "mola", "loramoe", "dynmole"]
Dtype = Literal["bf16", "fp16", "fp32"]

#: Experts a method gets where the trace does not say (the defaults of the papers' code).
DEFAULT_EXPERTS: dict[str, int] = {"lora": 1, "mixlora": 8, "mola": 8, "loramoe": 8, "dynmole": 6}


def _broken(column: str, allowed: str) -> PydanticCustomError:
    """Return the error for a broken rule over several columns.

    `column` is where the reader points.
    """
    return PydanticCustomError("job_rule", "{allowed}", {"column": column, "allowed": allowed})


@validated(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class JobSpec:
    """A JobSpec is one fine-tuning job as submitted.

    Exactly one of `total_steps`, `num_samples` with `epochs`, or `duration_s` says how long the job
    is. Raises pydantic's ValidationError on any value out of its range.
    """

    job_id: JobId
    """Unique name; ties between events at one time go by it."""
    submit_s: Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]
    """Seconds from the start of the trace, not a calendar time (`read_trace` refuses epoch
    seconds).
    """
    base_model: Model
    """Name of a model shape, for example `llama-7b`, or the path of a Hugging Face `config.json` or
    of its folder; a relative one starts at the trace's folder. Jobs that spell it the same share
    its copy.
    """
    method: Method
    batch_size: Annotated[int, Field(ge=1, le=65536)]
    """Sequences per optimizer step."""
    seq_len: Annotated[float, Field(ge=1, le=1_048_576, allow_inf_nan=False)]
    """Mean tokens per sequence."""
    total_steps: Positive | None = None
    """Declared optimizer steps (may be fractional if derived from a duration); every policy sees
    them.
    """
    num_samples: Count | None = None
    epochs: Positive | None = None
    duration_s: Seconds | None = None
    """Seconds alone on `ref_gpu`; turned into steps with the profile's solo rate."""
    ref_gpu: Label | None = None
    """Device that `duration_s` was measured on; omitted: the first device of the run."""
    user: Text = ""
    group: Text = ""
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = 0
    """Jobs with a higher number run first."""
    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    alpha: Positive | None = None
    """Omitted: 2 x rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    target_modules: Literal["all-linear", "attention", "mlp", "qv"] = "all-linear"
    num_experts: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Omitted: 8 for MixLoRA, MoLA and LoRAMoE, 6 for DynMoLE."""
    top_k: Annotated[int, Field(ge=1, le=1024)] = 2
    micro_batch_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Rows per micro-batch; omitted: the largest batch_size / 2^i that fits the device alone."""
    mem_bytes: Annotated[int, Field(ge=1, le=2**53)] | None = None
    """Overrides the memory model for this job; no base model is charged beside it."""
    seq_len_p95: Positive | None = None
    length_dist: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")] | None = None
    """Named shape of the length distribution, scaled to `seq_len` (see `loramux_profiles.lengths`).
    """
    dataset: Text = ""
    dtype: Dtype = "bf16"
    recompute: bool = False
    lr: Positive = 2e-4
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    num_gpus: Annotated[int, Field(ge=1, le=4096)] = 1
    """Above 1: a data-parallel gang that takes the same steps on each device, each with
    `batch_size` rows of its own. Steps, samples and durations are those of one device; tokens are
    counted on all of them.
    """
    deadline_s: Seconds | None = None
    stop_step: Positive | None = None
    """Ground truth of early stopping, in optimizer steps; shown only to `-oracle` policies."""

    @model_validator(mode="after")
    def _one_length(self) -> JobSpec:
        ways = (self.total_steps is not None) + (self.duration_s is not None)
        ways += self.num_samples is not None or self.epochs is not None
        if ways != 1:
            raise _broken("total_steps", "give exactly one of total_steps, num_samples with epochs, or duration_s")
        if (self.num_samples is None) != (self.epochs is None):
            raise _broken("num_samples", "num_samples and epochs go together")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise _broken("micro_batch_size", "must not exceed batch_size")
        if self.seq_len_p95 is not None and self.seq_len_p95 < self.seq_len:
            raise _broken("seq_len_p95", "must be at least seq_len (the mean)")
        if self.method != "lora" and self.top_k > self.experts:
            raise _broken("top_k", "must not exceed num_experts")
        return self

    @property
    def experts(self) -> int:
        """Number of experts per layer or linear (1 for LoRA)."""
        if self.method == "lora":
            return 1
        return DEFAULT_EXPERTS[self.method] if self.num_experts is None else self.num_experts

    @property
    def steps(self) -> float | None:
        """Declared optimizer steps, or None where only `duration_s` is given."""
        if self.num_samples is not None and self.epochs is not None:
            return float(steps_of_epochs(self.num_samples, self.epochs, self.batch_size))
        return self.total_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A Trace is a validated list of jobs, sorted by (submit_s, job_id).

    So the order of rows changes nothing. Build one with `loramux_traces.canonical.build_trace`,
    which sorts, refuses duplicate ids and hashes.
    """

    name: str
    jobs: Sequence[JobSpec]
    provenance: str = ""
    """Where it came from and which columns are modelled, in one line shown wherever a result is."""
    sha256: str = ""
    """Hash of the canonical content, whatever the order of rows and columns and the file format."""
    folder: str = field(default="", compare=False)
    """Folder that relative paths in `base_model` start from (empty: the working folder)."""
    columns: tuple[str, ...] = field(default=())
    """The required columns and those where a job differs from the default, in the schema's order.
    """

    def __iter__(self) -> Iterator[JobSpec]:
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)

"""Define what a job is: one row of jobs.csv, validated.

The names follow Helios/Acme (`job_id`, `user`) and carry their units. A `JobSpec` is data: no code,
no environment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass as validated

from loramux_traces.decimals import steps_of_epochs
from loramux_traces.job_types import (
    Bytes,
    Dropout,
    Dtype,
    Epochs,
    Experts,
    Gpus,
    JobId,
    Label,
    LearningRate,
    LengthShape,
    MeanTokens,
    Method,
    Model,
    Positive,
    Priority,
    Rank,
    Rows,
    Samples,
    Seconds,
    Seed,
    Steps,
    Submit,
    Targets,
    Text,
    broken_rule,
)

#: Experts a method gets where the trace does not say (the defaults of the papers' code).
DEFAULT_EXPERTS: dict[str, int] = {"lora": 1, "mixlora": 8, "mola": 8, "loramoe": 8, "dynmole": 6}


@validated(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class JobSpec:
    """A JobSpec is one fine-tuning job as submitted.

    Exactly one of `total_steps`, `num_samples` with `epochs`, or `duration_s` says how long the job
    is. Raises pydantic's ValidationError on any value out of its range.
    """

    job_id: JobId
    """Unique name; ties between events at one time go by it."""
    submit_s: Submit
    """Seconds from the start of the trace, not a calendar time (`read_trace` refuses epoch
    seconds).
    """
    base_model: Model
    """Name of a model shape, for example `llama-7b`, or the path of a Hugging Face `config.json` or
    of its folder; a relative one starts at the trace's folder. Jobs that spell it the same share
    its copy.
    """
    method: Method
    batch_size: Rows
    """Sequences per optimizer step."""
    seq_len: MeanTokens
    """Mean tokens per sequence."""
    total_steps: Steps | None = None
    """Declared optimizer steps (may be fractional if derived from a duration); every policy sees
    them.
    """
    num_samples: Samples | None = None
    epochs: Epochs | None = None
    duration_s: Seconds | None = None
    """Seconds alone on `ref_gpu`; turned into steps with the profile's solo rate."""
    ref_gpu: Label | None = None
    """Device that `duration_s` was measured on; omitted: the first device of the run."""
    user: Text = ""
    group: Text = ""
    priority: Priority = 0
    """Jobs with a higher number run first."""
    rank: Rank = 16
    alpha: Positive | None = None
    """Omitted: 2 x rank."""
    dropout: Dropout = 0.05
    target_modules: Targets = "all-linear"
    num_experts: Experts | None = None
    """Omitted: 8 for MixLoRA, MoLA and LoRAMoE, 6 for DynMoLE."""
    top_k: Experts = 2
    micro_batch_size: Rows | None = None
    """Rows per micro-batch; omitted: the largest batch_size / 2^i that fits the device alone."""
    mem_bytes: Bytes | None = None
    """Overrides the memory model for this job; no base model is charged beside it."""
    seq_len_p95: Positive | None = None
    length_dist: LengthShape | None = None
    """Named shape of the length distribution, scaled to `seq_len` (see `loramux_profiles.lengths`).
    """
    dataset: Text = ""
    dtype: Dtype = "bf16"
    recompute: bool = False
    lr: LearningRate = 2e-4
    seed: Seed = 0
    num_gpus: Gpus = 1
    """Above 1: a data-parallel gang that takes the same steps on each device, each with
    `batch_size` rows of its own. Steps, samples and durations are those of one device; tokens are
    counted on all of them.
    """
    deadline_s: Seconds | None = None
    stop_step: Steps | None = None
    """Ground truth of early stopping, in optimizer steps; shown only to `-oracle` policies."""

    @model_validator(mode="after")
    def _one_length(self) -> JobSpec:
        ways = (self.total_steps is not None) + (self.duration_s is not None)
        ways += self.num_samples is not None or self.epochs is not None
        if ways != 1:
            raise broken_rule("total_steps", "give exactly one of total_steps, num_samples with epochs, or duration_s")
        if (self.num_samples is None) != (self.epochs is None):
            raise broken_rule("num_samples", "num_samples and epochs go together")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise broken_rule("micro_batch_size", "must not exceed batch_size")
        if self.seq_len_p95 is not None and self.seq_len_p95 < self.seq_len:
            raise broken_rule("seq_len_p95", "must be at least seq_len (the mean)")
        if self.method != "lora" and self.top_k > self.experts:
            raise broken_rule("top_k", f"must not exceed num_experts ({self.experts})")
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

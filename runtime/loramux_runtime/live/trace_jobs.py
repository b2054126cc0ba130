"""This module makes training jobs of the jobs of a trace.

They have the same adapters, steps and row lengths, for a replay on a real device.
"""

from __future__ import annotations

from math import ceil
from typing import Any, NoReturn

from pydantic import ValidationError

from loramux_profiles.lengths import is_length_shape
from loramux_runtime.jobs.jobs_file import TrainJob
from loramux_traces.errors import UsageError
from loramux_traces.file_model import faults
from loramux_traces.job import JobSpec

_SLACK = 1e-12
"""Relative slack for a product of steps that a rounding error has lifted above a whole number."""


def whole_steps(steps: float) -> int:
    """Round the steps up, to at least one."""
    return max(1, ceil(steps * (1 - _SLACK)))


def train_job(spec: JobSpec, *, seed: int) -> TrainJob:
    """Return the training job of one row of a trace.

    `seed`: the run's, from which lengths and tokens are drawn as a simulation with that seed draws
    the lengths. What the run decides for all its jobs (base model, dtype, recompute) is not looked
    at, nor are deadlines, which no policy reads.

    Raises UsageError, naming the job, for what cannot run on one real device.
    """
    steps = _declared(spec)
    lengths: dict[str, Any] = {"seq_len": spec.seq_len, "seed": seed}
    if spec.seq_len_p95 is not None:
        lengths["seq_len_p95"] = spec.seq_len_p95
    if spec.length_dist is not None:
        lengths["length_dist"] = spec.length_dist
    elif spec.seq_len_p95 is None and is_length_shape(spec.dataset):  # as the cost model reads it
        lengths["length_dist"] = spec.dataset
    fields = {
        "id": spec.job_id,
        "method": spec.method,
        "adapter": _adapter(spec),
        "data": {"synthetic": lengths},
        "batch_size": spec.batch_size,
        "micro_batch_size": spec.micro_batch_size,
        "steps": whole_steps(steps),
        "optimizer": {"lr": spec.lr},
        "submit_s": spec.submit_s,
        "priority": spec.priority,
        "user": spec.user,
        "group": spec.group,
        "seed": spec.seed,
    }
    try:
        return TrainJob.model_validate(fields)
    except ValidationError as error:
        _refuse(spec, str(faults(error, fields)[0]))


def _refuse(spec: JobSpec, why: str) -> NoReturn:
    raise UsageError(f"job {spec.job_id} cannot run live: {why}")


def _declared(spec: JobSpec) -> float:
    """Return the job's optimizer steps, once all that a real run does not know is ruled out."""
    if spec.num_gpus > 1:
        _refuse(spec, f"it wants {spec.num_gpus} devices (num_gpus), a run has one")
    if spec.mem_bytes is not None:
        _refuse(spec, "its memory is given (mem_bytes), and a real job takes what it takes")
    if spec.stop_step is not None:
        _refuse(spec, "it is said to stop early (stop_step), and a real job's loss decides that")
    if spec.steps is None:
        _refuse(spec, "its length is given in seconds (duration_s); say it in total_steps")
    return spec.steps


def _adapter(spec: JobSpec) -> dict[str, Any]:
    """Return the method's configuration as the trace has it.

    alpha is 2 * rank where the trace says nothing.
    """
    common: dict[str, Any] = {
        "rank": spec.rank,
        "alpha": 2.0 * spec.rank if spec.alpha is None else spec.alpha,
        "dropout": spec.dropout,
    }
    targets = spec.target_modules
    if spec.method == "lora":
        return common | {"target_modules": targets}
    if spec.method == "mixlora":
        if targets in ("attention", "qv"):
            _refuse(spec, f"a MixLoRA of {targets} has no experts (target_modules); make it a lora")
        attention = None if targets == "mlp" else common | {"target_modules": "attention"}
        return common | {"num_experts": spec.experts, "top_k": spec.top_k, "attention": attention}
    common |= {"target_modules": targets, "num_experts": spec.experts}
    if spec.method == "mola":
        return common | {"top_k": spec.top_k}
    return common | ({"keep_top_k": spec.top_k} if spec.method == "dynmole" else {})

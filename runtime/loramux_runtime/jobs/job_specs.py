"""This module puts a training job in the terms of a trace.

So the same cost model, loop and policies take it.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch

from loramux_profiles.hf_config import shape_from_dict
from loramux_profiles.shape_catalog import register_shape
from loramux_runtime.data import JobData, SyntheticData, length_stats
from loramux_runtime.fused.adapters.mixlora.config import MixLoraConfig
from loramux_runtime.fused.base_model import BaseModel
from loramux_runtime.jobs.jobs_file import TrainJob
from loramux_traces.job import JobSpec
from loramux_traces.job_types import Dtype, Targets


def register_base(base: BaseModel) -> str:
    """Make the base's shape known to the cost model, and return the label that jobs name it by."""
    label = re.sub(r"[^A-Za-z0-9_.-]+", "-", base.name.rstrip("/").rsplit("/", 1)[-1]).strip("-.") or "base"
    # never the name of a shipped shape, whose vocabulary or depth may differ
    label = f"{label[:100]}.run"
    register_shape(shape_from_dict(base.hf.config.to_dict(), label))
    return label


def job_spec(job: TrainJob, data: JobData, label: str, base: BaseModel, recompute: bool) -> JobSpec:
    """Return the job as a row of a trace.

    The row has the mean and p95 of its real lengths, its rank and experts, and its declared steps.
    """
    return spec_of_data(job, data, label, dtype=dtype_of(base), recompute=recompute)


def dtype_of(base: BaseModel) -> Dtype:
    """Return the number format of a base in the words of a trace."""
    return "bf16" if base.dtype == torch.bfloat16 else "fp32"


class RowFigures(NamedTuple):
    """These fields are what a trace says of a job's rows."""

    rows: int
    seq_len: float
    seq_len_p95: float | None
    length_dist: str | None = None


def row_figures(job: TrainJob, data: JobData) -> RowFigures:
    """Return what a trace says of these rows."""
    # These are the trace's own words, and the rows are one draw from them
    if isinstance(job.data, SyntheticData):
        said = job.data.synthetic
        return RowFigures(len(data.train), said.seq_len, said.seq_len_p95, said.length_dist)
    stats = length_stats(data.train)
    return RowFigures(stats.rows, stats.mean, max(stats.p95, stats.mean))


def _targets(config: Any) -> Targets:
    if isinstance(config, MixLoraConfig):
        return "mlp" if config.attention is None else "all-linear"
    # A list of linears has no name in a trace: it costs as if all were adapted, an upper bound
    targets = config.target_modules
    return targets if targets in ("attention", "mlp", "qv") else "all-linear"


def spec_of_data(job: TrainJob, data: JobData, label: str, *, dtype: Dtype, recompute: bool) -> JobSpec:
    """Return the job as a row of a trace, without a base model at hand."""
    return spec_of_figures(job, row_figures(job, data), label, dtype=dtype, recompute=recompute)


def spec_of_figures(job: TrainJob, rows: RowFigures, label: str, *, dtype: Dtype, recompute: bool) -> JobSpec:
    """Return the job as a row of a trace, where its rows are not at hand either."""
    config = job.adapter_config
    experts = getattr(config, "num_experts", None)
    if isinstance(experts, tuple):
        experts = max(experts)
    top_k = getattr(config, "top_k", getattr(config, "keep_top_k", None))
    return JobSpec(
        job_id=job.id,
        submit_s=job.submit_s,
        base_model=label,
        method=job.method,
        batch_size=job.batch_size,
        micro_batch_size=job.micro_batch_size,
        seq_len=rows.seq_len,
        seq_len_p95=rows.seq_len_p95,
        length_dist=rows.length_dist,
        total_steps=float(job.steps) if job.steps is not None else None,
        num_samples=rows.rows if job.steps is None else None,
        epochs=job.epochs,
        user=job.user,
        group=job.group,
        priority=job.priority,
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        target_modules=_targets(config),
        num_experts=experts,
        top_k=max(1, min(top_k, experts)) if top_k is not None and experts is not None else 1,
        dtype=dtype,
        recompute=recompute,
        lr=job.optimizer.lr,
        seed=job.seed,
    )

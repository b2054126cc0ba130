"""A training job in the terms of a trace, so that the same cost model, loop and policies take it."""

from __future__ import annotations

import re
from typing import Literal

import torch

from loramux_profiles.hf_config import shape_from_dict
from loramux_profiles.shapes import register_shape
from loramux_runtime.base_model import BaseModel
from loramux_runtime.data import JobData, LengthStats, length_stats
from loramux_runtime.jobs_file import TrainJob
from loramux_traces.job import Dtype, JobSpec

Targets = Literal["all-linear", "attention", "mlp", "qv"]


def register_base(base: BaseModel) -> str:
    """Make the base's shape known to the cost model; returns the label that jobs name it by."""
    label = re.sub(r"[^A-Za-z0-9_.-]+", "-", base.name.rstrip("/").rsplit("/", 1)[-1]).strip("-.") or "base"
    label = f"{label[:100]}.run"  # never the name of a shipped shape, whose vocabulary or depth may differ
    register_shape(shape_from_dict(base.hf.config.to_dict(), label))
    return label


def job_spec(job: TrainJob, data: JobData, label: str, base: BaseModel, recompute: bool) -> JobSpec:
    """The job as a row of a trace: mean and p95 of its real lengths, its rank and experts, its declared steps."""
    dtype: Dtype = "bf16" if base.dtype == torch.bfloat16 else "fp32"
    return spec_of_lengths(job, length_stats(data.train), label, dtype=dtype, recompute=recompute)


def spec_of_lengths(job: TrainJob, stats: LengthStats, label: str, *, dtype: Dtype, recompute: bool) -> JobSpec:
    """The same from the statistics of its lengths."""
    config = job.adapter_config
    experts = getattr(config, "num_experts", None)
    if isinstance(experts, tuple):
        experts = max(experts)
    # a list of linears has no name in a trace: costed as if all were adapted, an upper bound
    targets = getattr(config, "target_modules", None)
    named: Targets = targets if targets in ("attention", "mlp", "qv") else "all-linear"
    top_k = getattr(config, "top_k", getattr(config, "keep_top_k", None))
    return JobSpec(
        job_id=job.id,
        submit_s=job.submit_s,
        base_model=label,
        method=job.method,
        batch_size=job.batch_size,
        micro_batch_size=job.micro_batch_size,
        seq_len=stats.mean,
        seq_len_p95=max(stats.p95, stats.mean),
        total_steps=float(job.steps) if job.steps is not None else None,
        num_samples=stats.rows if job.steps is None else None,
        epochs=job.epochs,
        user=job.user,
        group=job.group,
        priority=job.priority,
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        target_modules=named,
        num_experts=experts,
        top_k=max(1, min(top_k, experts)) if top_k is not None and experts is not None else 1,
        dtype=dtype,
        recompute=recompute,
        lr=job.optimizer.lr,
        seed=job.seed,
    )

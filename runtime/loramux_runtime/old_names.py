"""This module says where the modules went that lay at the root of the package until 0.1."""

from __future__ import annotations

from typing import Final

MOVED: Final = {
    "adapted": "fused.adapted",
    "adapter": "fused.adapters.base",
    "adapter_config": "jobs.adapter_config",
    "adapter_files": "jobs.adapter_files",
    "admission": "jobs.preparation",
    "attention": "fused.attention",
    "base_model": "fused.base_model",
    "context": "fused.context",
    "devices": "fused.torch_devices",
    "early_stop": "jobs.early_stop",
    "evaluation": "jobs.evaluation",
    "executor": "train.executor",
    "faults": "train.faults",
    "fingerprint": "jobs.fingerprint",
    "groups": "fused.groups",
    "job_data": "jobs.job_data",
    "job_specs": "jobs.job_specs",
    "jobs_file": "jobs.jobs_file",
    "memory": "fused.memory_meter",
    "model": "fused.model",
    "observed": "train.observer",
    "optim": "jobs.optim",
    "packing": "fused.packing",
    "routing": "fused.routing",
    "signals": "train.signals",
    "slab": "fused.slab",
    "stats": "fused.stats",
    "times": "train.times",
    "training_job": "jobs.training_job",
    "training_state": "jobs.training_state",
}
"""Old names to new ones, both below the package (`loramux_traces.moved`)."""

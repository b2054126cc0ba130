"""Traces for replays of minutes on a CPU: mixed lengths, methods and priorities on llama-tiny."""

from __future__ import annotations

import numpy as np

from loramux_traces.canonical import build_trace
from loramux_traces.job import JobSpec, Trace

METHODS = (("lora", 16, None), ("mixlora", 8, 4), ("mola", 8, 4), ("dynmole", 8, 4))


def mixed_trace(jobs: int, *, seed: int, gap_s: float, work: float) -> Trace:
    """`jobs` jobs, exponential gaps of `gap_s` in the mean; `work` scales their steps (bounded Pareto, 1 to 12)."""
    rng = np.random.Generator(np.random.PCG64(seed))
    submit_s = np.concatenate([[0.0], np.cumsum(rng.exponential(gap_s, jobs - 1))])
    size = np.minimum(12.0, (1.0 - rng.random(jobs)) ** (-1.0 / 1.1))
    specs = []
    for i in range(jobs):
        method, rank, experts = METHODS[int(rng.integers(len(METHODS)))]
        seq_len = float(rng.choice([24, 48, 96]))
        batch = int(rng.choice([2, 4, 8]))
        specs.append(
            JobSpec(
                job_id=f"job{i:02d}",
                submit_s=round(float(submit_s[i]), 2),
                base_model="llama-tiny",
                method=method,
                rank=rank,
                num_experts=experts,
                batch_size=batch,
                micro_batch_size=batch,
                seq_len=seq_len,
                total_steps=float(max(2, round(work * size[i] * 8 / batch))),
                dtype="fp32",
                priority=int(rng.integers(3)),
                seed=i,
            )
        )
    return build_trace(f"mixed{jobs}", specs, provenance="Made for replays; nothing of it is measured.")

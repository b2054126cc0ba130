"""Traces for replays of a minute or two on a CPU.

Mixed methods, lengths and priorities on llama-tiny.
"""

from __future__ import annotations

import numpy as np

from loramux_traces.canonical import build_trace
from loramux_traces.job import JobSpec, Trace

METHODS = (("lora", 16, None), ("mixlora", 8, 4), ("mola", 8, 4), ("dynmole", 8, 4))
LENGTHS = ((8.0, 16.0, 96.0), (0.4, 0.35, 0.25))
"""Mean tokens of a row, and how often: many jobs of small steps, where fusing saves launches, some
of large memory.
"""


def mixed_trace(jobs: int, *, seed: int, gap_s: float, work: float) -> Trace:
    """`jobs` jobs with exponential gaps of `gap_s` in the mean.

    `work` scales their steps (bounded Pareto, 1 to 8).
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    submit_s = np.concatenate([[0.0], np.cumsum(rng.exponential(gap_s, jobs - 1))])
    size = np.minimum(8.0, (1.0 - rng.random(jobs)) ** (-1.0 / 1.1))
    specs = []
    for i in range(jobs):
        method, rank, experts = METHODS[int(rng.integers(len(METHODS)))]
        seq_len = float(rng.choice(LENGTHS[0], p=LENGTHS[1]))
        short = seq_len < 50
        batch = int(rng.choice([1, 2, 4])) if short else int(rng.choice([4, 8]))
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
                total_steps=float(max(2, round(work * size[i] * (4 if short else 1)))),
                dtype="fp32",
                priority=int(rng.integers(3)),
                seed=i,
            )
        )
    return build_trace(f"mixed{jobs}", specs, provenance="Made for replays; nothing of it is measured.")

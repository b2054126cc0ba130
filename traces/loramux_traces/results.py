"""Define what a result is: the per-job columns, the run summary and the timeline.

They are the same from the simulator and the runtime. Column names are Batsim's (`submission_time`,
`waiting_time`, ...); every time is in seconds from the start of the trace.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd

SCHEMA_VERSION: Final = 1

COMPLETED: Final = "COMPLETED"
UNSCHEDULABLE: Final = "UNSCHEDULABLE"
REJECTED: Final = "REJECTED"
FAILED_OOM: Final = "FAILED_OOM"
FAILED_POLICY: Final = "FAILED_POLICY"
FAILED_DIVERGED: Final = "FAILED_DIVERGED"
FAILED_DATA: Final = "FAILED_DATA"
"""The job's data cannot be read, or changed after the job was submitted."""
FAILED_CRASHED: Final = "FAILED_CRASHED"
"""The process that trained the job died several times in the job's steps."""
CANCELLED: Final = "CANCELLED"
UNFINISHED: Final = "UNFINISHED"
FAILED_STATES: Final = (FAILED_OOM, FAILED_POLICY, FAILED_DIVERGED, FAILED_DATA, FAILED_CRASHED, UNFINISHED)

#: Column -> what it holds. jobs.csv of a run folder has exactly these, in this order, one row a
#: job, sorted by job_id.
JOB_COLUMNS: Final[dict[str, str]] = {
    "job_id": "the job",
    "submission_time": "when it was submitted, s",
    "starting_time": "when it first ran, s (empty if it never did)",
    "finish_time": "when it ended, s (empty if it never ran)",
    "waiting_time": "first start - submission, s",
    "execution_time": "finish - first start - paused time, s",
    "paused_time": "time between first start and finish without a device, s",
    "turnaround_time": "finish - submission, s",
    "stretch": "turnaround / solo_time (below 1 where a job did much of its work on a faster type than its last)",
    "solo_time": "modelled time alone on the device type it last ran on, s",
    "final_state": "COMPLETED, FAILED_OOM, UNSCHEDULABLE, REJECTED, ...",
    "reason": "why it did not complete (empty if it did)",
    "allocated_resources": "device ids it last ran on, joined by +",
    "preemptions": "times it was paused",
    "oom_events": "times it was evicted by an out-of-memory",
    "steps_done": "optimizer steps done",
    "tokens_done": "non-pad tokens trained on",
    "service_s": "service received, in solo-equivalent seconds",
    "user": "user of the trace",
    "group": "group of the trace",
    "base_model": "base model",
    "method": "adapter method",
    "priority": "priority of the trace",
    "num_gpus": "devices it asked for",
}

TEXT_COLUMNS: Final = (
    "job_id", "final_state", "reason", "allocated_resources", "user", "group", "base_model", "method",
)  # fmt: skip
COUNT_COLUMNS: Final = ("preemptions", "oom_events", "priority", "num_gpus")
"""Columns of whole numbers; those that are neither text nor these are floats."""

STATISTICS: Final = ("mean", "p50", "p95", "p99", "max")


def statistics(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float | None]:
    """Return mean, median, p95, p99 (numpy linear) and maximum.

    Each is None for no values (JSON has no NaN).
    """
    if len(values) == 0:
        return dict.fromkeys(STATISTICS)
    p50, p95, p99 = (float(q) for q in np.percentile(values, (50, 95, 99)))
    return {"mean": float(values.mean()), "p50": p50, "p95": p95, "p99": p99, "max": float(values.max())}


@dataclass(slots=True, kw_only=True)
class RunStats:
    """RunStats are the totals that a backend counts while it runs.

    Everything else of a summary comes from the job rows.
    """

    window_s: float | None = None
    """Time that the totals below are of; None: from the first submission to the last end of any job
    that ran.
    """
    busy_device_s: float = 0.0
    """Device-seconds with at least one active job."""
    n_devices: int = 1
    real_tokens: float = 0.0
    """Non-pad tokens trained on."""
    computed_tokens: float = 0.0
    """Tokens really computed, pads and rounding included."""
    memory_byte_s: float = 0.0
    """Integral of memory in use over time, summed over devices."""
    memory_peak_bytes: float = 0.0
    """Largest memory of any one device at any time."""
    memory_capacity_bytes: float = 0.0
    """Capacity of the largest device."""
    memory_capacity_byte_s_per_s: float = 0.0
    """Sum of the capacities of all devices."""
    steps: float = 0.0
    """Fused steps executed (expected number in rate fidelity)."""
    decisions: int = 0
    """Calls of the policy's place()."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the figures must know, for example that rates came from a roll-out."""


def summarise(jobs: pd.DataFrame, stats: RunStats) -> dict[str, Any]:
    """Compute the figures of one run, as in the `runs` entries of `simulate --json`.

    Percentiles are over completed jobs. There are two spans of time: `makespan_s` is of these jobs
    (first submission to the last one completed), `window_s` is of the devices. Tokens, busy share,
    mean and peak memory, steps and decisions are of everything that the devices did in the window,
    for whichever job. The two differ where the last job to end failed, and after a warm-up, whose
    jobs may still run in the window. `jobs` has JOB_COLUMNS. Keys that hold times of the program
    itself are added by the caller and have `wall` in their name.
    """
    figures = ["finish_time", "turnaround_time", "waiting_time", "stretch"]
    done = jobs.loc[jobs["final_state"] == COMPLETED, figures]
    first = float(jobs["submission_time"].min()) if len(jobs) else 0.0
    last = float(done["finish_time"].max()) if len(done) else first
    makespan_s = last - first
    window_s = stats.window_s
    if window_s is None:
        ended = jobs["finish_time"].max() if len(jobs) else first
        window_s = float(ended) - first if ended == ended else 0.0
    span_device_s = window_s * stats.n_devices
    return {
        "jobs": len(jobs),
        "completed": len(done),
        "failed": int(jobs["final_state"].isin(FAILED_STATES).sum()),
        "unschedulable": int((jobs["final_state"] == UNSCHEDULABLE).sum()),
        "rejected": int((jobs["final_state"] == REJECTED).sum()),
        "makespan_s": makespan_s,
        "window_s": window_s,
        "turnaround_s": statistics(done["turnaround_time"].to_numpy(dtype=np.float64)),
        "waiting_s": statistics(done["waiting_time"].to_numpy(dtype=np.float64)),
        "stretch": statistics(done["stretch"].to_numpy(dtype=np.float64)),
        "effective_tokens_per_s": stats.real_tokens / window_s if window_s > 0 else 0.0,
        "padding_fraction": 1 - stats.real_tokens / stats.computed_tokens if stats.computed_tokens > 0 else 0.0,
        "gpu_busy_fraction": _share(stats.busy_device_s, span_device_s),
        "memory_mean_bytes": stats.memory_byte_s / span_device_s if span_device_s > 0 else 0.0,
        "memory_peak_bytes": stats.memory_peak_bytes,
        "memory_capacity_bytes": stats.memory_capacity_bytes,
        "preemptions": int(jobs["preemptions"].sum()),
        "oom_events": int(jobs["oom_events"].sum()),
        "steps": stats.steps,
        "decisions": stats.decisions,
        "notes": list(stats.notes),
    }


def _share(part: float, whole: float) -> float:
    """Return part / whole, or 1 where it is above 1 by rounding only.

    A share that is above 1 by more is returned as it is: it is an error that must be seen.
    """
    share = part / whole if whole > 0.0 else 0.0
    return 1.0 if 1.0 < share < 1.0 + 1e-9 else share


def empty_timeline() -> dict[str, Any]:
    """Return the columns of timeline.json.gz, without rows.

    `segments`: one row per stay of a job on a device. `samples`: memory (bytes, upper estimate and
    expected) and residents of a device from `t_s` on. `queue`: waiting jobs from `t_s` on.
    `devices`: a list of {device_id, name, memory_capacity_bytes}.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "devices": [],
        "segments": {"job_id": [], "device_id": [], "start_s": [], "end_s": []},
        "samples": {"device_id": [], "t_s": [], "memory_bytes": [], "n_residents": []},
        "queue": {"t_s": [], "n_waiting": []},
    }

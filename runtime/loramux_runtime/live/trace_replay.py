"""This module makes a trace the work of a live scheduler.

The trace is replayed at another pace (`run --trace`) or submitted (`submit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

from loramux_profiles.checked import read_checked
from loramux_runtime.jobs.jobs_file import BaseConfig, TrainJob
from loramux_runtime.live.state.store import Store
from loramux_runtime.live.trace_jobs import train_job, whole_steps
from loramux_traces.canonical import build_trace
from loramux_traces.errors import StateError, UsageError
from loramux_traces.filesafe import plain
from loramux_traces.job import JobSpec, Trace
from loramux_traces.writer import write_trace

TRACE = "trace.csv"
"""File of the trace as it is replayed, in the state folder."""


def scaled(trace: Trace, base: BaseConfig, *, time_scale: float, step_scale: float, recompute: bool) -> Trace:
    """Return the trace as it will be replayed on this base.

    Arrivals come `time_scale` times as fast, steps are times `step_scale`. UsageError for a job
    whose steps cannot be known, and for a scale that is none.
    """
    for what, scale in (("time scale", time_scale), ("step scale", step_scale)):
        if not 0 < scale < inf:
            raise UsageError(f"the {what} must be above 0, not {scale}")

    name = base.shape or (base.path.name if base.path else "base")

    def one(spec: JobSpec) -> JobSpec:
        if spec.steps is None:
            raise UsageError(f"job {spec.job_id}: a live replay needs its steps; its length is given in seconds")
        return replace(
            spec,
            submit_s=spec.submit_s / time_scale,
            base_model=name,
            dtype=base.dtype,
            recompute=recompute,
            total_steps=float(whole_steps(spec.steps * step_scale)),
            num_samples=None,
            epochs=None,
        )

    how = f"{trace.provenance} Replayed on {name}, {time_scale:g} times as fast, steps x {step_scale:g}.".strip()
    return build_trace(trace.name, [one(spec) for spec in trace], provenance=how)


def training_jobs(trace: Trace, seed: int) -> list[TrainJob]:
    """Return the trace's jobs with made-up rows as long as the simulator draws them.

    UsageError for what cannot run live.
    """

    return [train_job(spec, seed=seed) for spec in trace]


def replay(
    store: Store, file: Path, base: BaseConfig, *, time_scale: float, step_scale: float, recompute: bool, seed: int
) -> str:
    """Put the jobs of a trace into the queue, each at its time.

    The second time (a restart) nothing is done. Returns what is to be said of it. StateError where
    the folder has other jobs already.
    """

    trace = read_checked(file)
    wanted = {
        "name": trace.name, "sha256": trace.sha256, "provenance": trace.provenance, "jobs": len(trace),
        "time_scale": time_scale, "step_scale": step_scale, "recompute": recompute, "seed": seed,
    }  # fmt: skip
    known = store.fact("trace")
    if known == plain(wanted):
        return f"going on with the replay of {trace.name}"
    if known is not None or store.jobs():
        raise StateError(f"{store.folder}: has other jobs already; replay into a new --state")
    ours = scaled(trace, base, time_scale=time_scale, step_scale=step_scale, recompute=recompute)
    jobs = training_jobs(ours, seed)
    write_trace(ours, store.folder / TRACE, force=True)
    with store.transaction():
        store.submit([(job.model_dump(mode="json"), store.folder, job.submit_s) for job in jobs], at_s=True)
        store.set_facts(trace=wanted)
    last_s = max(job.submit_s for job in jobs)
    return f"replaying {len(jobs)} jobs of {trace.name}, the last of them submitted at {last_s:.0f} s"


def submitted(file: Path) -> Sequence[TrainJob]:
    """Return the jobs of a trace, to be submitted now."""

    return training_jobs(read_checked(file), 0)

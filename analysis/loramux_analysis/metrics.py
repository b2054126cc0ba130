"""Compute figures of one run beyond its summary.

They are finish-time fairness, Jain's index and Little's law. Times are in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from loramux_traces.arrays import Floats
from loramux_traces.results import COMPLETED
from loramux_traces.runfolder import Run


@dataclass(frozen=True, slots=True)
class Figure:
    """A Figure is one figure of a run: its column, its name, its unit, and its better direction."""

    column: str
    label: str
    unit: str
    lower_is_better: bool = True
    job_column: str = ""
    """Column of jobs.csv that it is the mean of, if any (one seed can then give an interval over
    jobs).
    """
    short: str = ""
    """A short name with its unit, for a terminal."""


#: What `compare` shows, in order. Columns are those of results.csv and of `fairness_figures`.
FIGURES: Final = (
    Figure("turnaround_mean_s", "mean turnaround", "s", job_column="turnaround_time", short="turnaround s"),
    Figure("turnaround_p99_s", "p99 turnaround", "s", short="p99 s"),
    Figure("waiting_mean_s", "mean waiting", "s", job_column="waiting_time", short="wait s"),
    Figure("stretch_mean", "mean stretch", "x solo", job_column="stretch"),
    Figure("fairness_p95", "p95 finish-time fairness", "rho"),
    Figure("makespan_s", "makespan", "s", short="makespan s"),
    Figure("effective_tokens_per_s", "effective tokens", "tokens/s", lower_is_better=False, short="tokens/s"),
    Figure("padding_fraction", "padding", "of tokens", short="pad %"),
    Figure("gpu_busy_fraction", "GPU busy", "of time", lower_is_better=False),
    Figure("memory_peak_bytes", "memory peak", "bytes"),
    Figure("preemptions", "preemptions", "count"),
    Figure("oom_events", "out of memory", "count"),
    Figure("completed", "completed", "jobs", lower_is_better=False),
)


def figure(column: str) -> Figure:
    """Return the Figure of one column.

    Raises KeyError when there is none.
    """
    return {f.column: f for f in FIGURES}[column]


def completed(jobs: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that percentiles and means are over."""
    return jobs[jobs["final_state"] == COMPLETED]


def n_devices(run: Run) -> int:
    """Return the number of devices of a run, which is at least 1.

    It comes from the manifest (a list, or a number).
    """
    devices = run.manifest.get("devices", 1)
    return max(1, len(devices) if isinstance(devices, list | dict) else int(devices))


def contention(jobs: pd.DataFrame, devices: int) -> Floats:
    """Return the mean number of devices asked for per device that exists, over each job's life.

    The life is [submission, finish], and the result is at least 1. A job counts from submission to
    finish with its `num_gpus`; one that never ended counts to the end of the run, one that was
    never admitted does not count. NaN for jobs without a finish. O(n log n): differences of the
    integral of the step function.
    """
    submit = jobs["submission_time"].to_numpy(dtype=np.float64)
    finish = jobs["finish_time"].to_numpy(dtype=np.float64)
    started = ~np.isnan(jobs["starting_time"].to_numpy(dtype=np.float64))
    counts = started | ~np.isnan(finish)
    end = np.nanmax(np.concatenate([finish, submit, [0.0]]))
    until = np.where(np.isnan(finish), end, finish)
    demand = np.maximum(1.0, jobs["num_gpus"].to_numpy(dtype=np.float64))
    times = np.concatenate([submit[counts], until[counts]])
    steps = np.concatenate([demand[counts], -demand[counts]])
    order = np.argsort(times, kind="stable")
    times, level = times[order], np.cumsum(steps[order])
    area = np.concatenate([[0.0], np.cumsum(level[:-1] * np.diff(times))]) if len(times) else np.zeros(0)
    life = finish - submit
    if not len(times):
        return np.full(len(jobs), np.nan)
    # A job that ends the moment it is submitted has no lifetime to average over: its contention is
    # taken as 1.
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (np.interp(finish, times, area) - np.interp(submit, times, area)) / life
    mean = np.where(life > 0, mean, 1.0)
    return np.where(np.isnan(finish), np.nan, np.maximum(1.0, mean / devices))


def finish_time_fairness(jobs: pd.DataFrame, devices: int) -> Floats:
    """Return Themis' rho of each completed job: turnaround / (solo time x mean contention).

    It is NaN for other jobs. The denominator is how long the job would have taken alone on its
    equal share of the cluster, given how many others were there during its life (Mahajan et al.,
    NSDI 2020; contention averaged over the life as in Gavel, OSDI 2020). rho <= 1: the job did at
    least as well as its fair share. Sharing a base model makes rho < 1 possible for all jobs at
    once.
    """
    turnaround = jobs["turnaround_time"].to_numpy(dtype=np.float64)
    solo = jobs["solo_time"].to_numpy(dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = turnaround / (solo * contention(jobs, devices))
    return np.where((jobs["final_state"] == COMPLETED) & np.isfinite(rho), rho, np.nan)


def jain_index(values: Floats) -> float | None:
    """Return Jain's index (sum x)^2 / (n sum x^2).

    It is 1 when all are equal, 1/n when one has everything; None for no values.
    """
    values = values[np.isfinite(values)]
    square = float((values**2).sum())
    return float(values.sum()) ** 2 / (len(values) * square) if len(values) and square > 0 else None


def fairness_figures(jobs: pd.DataFrame, devices: int) -> dict[str, float | None]:
    """Return mean, p95 and max of rho, and Jain's index of the completed jobs' stretch.

    An index of 1 means that all jobs were slowed down alike.
    """
    rho = finish_time_fairness(jobs, devices)
    rho = rho[~np.isnan(rho)]
    jain = jain_index(completed(jobs)["stretch"].to_numpy(dtype=np.float64))
    if not len(rho):
        return {"fairness_mean": None, "fairness_p95": None, "fairness_max": None, "jain_stretch": jain}
    return {
        "fairness_mean": float(rho.mean()),
        "fairness_p95": float(np.percentile(rho, 95)),
        "fairness_max": float(rho.max()),
        "jain_stretch": jain,
    }


@dataclass(frozen=True, slots=True)
class LittleCheck:
    """A LittleCheck is one use of Little's law, in job-seconds.

    It sets the time integral of a count against the sum of the times of the jobs counted.
    """

    what: str
    integral_job_s: float
    sum_of_times_job_s: float

    @property
    def gap(self) -> float:
        """Relative difference; 0 when the law holds to the last bit."""
        largest = max(abs(self.integral_job_s), abs(self.sum_of_times_job_s))
        return abs(self.integral_job_s - self.sum_of_times_job_s) / largest if largest else 0.0


def littles_law(run: Run) -> list[LittleCheck]:
    """Check Little's law over the whole run, from two records kept apart.

    Counts are from the timeline, times from jobs.csv. Queue: integral of the number waiting = sum
    of waiting and paused time. Devices: integral of residents = sum of execution time x num_gpus.
    Both are exact over a window in which the system starts and ends empty. The list is empty
    without a timeline.
    """
    if not run.has_timeline:
        return []
    timeline, jobs = run.timeline, run.jobs
    ran = jobs[jobs["starting_time"].notna() & jobs["finish_time"].notna()]
    end = float(jobs[["submission_time", "finish_time"]].max().max())
    samples = pd.DataFrame(timeline["samples"])
    on_devices = sum(
        _integral(part["t_s"], part["n_residents"], end) for _, part in samples.groupby("device_id", sort=True)
    )
    queue = timeline["queue"]
    return [
        LittleCheck(
            "queue",
            _integral(queue["t_s"], queue["n_waiting"], end),
            float((ran["waiting_time"] + ran["paused_time"]).sum()),
        ),
        LittleCheck("devices", float(on_devices), float((ran["execution_time"] * ran["num_gpus"]).sum())),
    ]


def _integral(t_s: Any, values: Any, end_s: float) -> float:
    """Integrate a step function given by the values from each time on, up to `end_s`."""
    t, v = np.asarray(t_s, dtype=np.float64), np.asarray(values, dtype=np.float64)
    return float((v * np.diff(np.append(t, max(end_s, t[-1])))).sum()) if len(t) else 0.0

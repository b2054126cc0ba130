"""This module writes a scheduler's status as a Prometheus text file.

The file has the exposition format 0.0.4 and is for node_exporter's textfile collector. There is no
socket: `write_prometheus("/var/lib/node_exporter/loramux.prom", status)` and node_exporter's
`--collector.textfile.directory` do the rest. No sample carries a time, for that collector refuses a
file with one.

Cardinality is bounded. A job has series of its own while it is in the system and for `ENDED_FOR_S`
after its end, so that a scrape sees its last values; of ended jobs only the latest `MOST_ENDED`, of
live ones `MOST_LIVE` (those on the device first, then by submission). `loramux_jobs` counts every
job in any case, `loramux_jobs_without_series` those left out. The label is `job_id`, since `job` is
what Prometheus calls the target it scrapes.

A value that is not known (None, or not finite) has no sample, never NaN. What may go back to a
checkpoint (step and tokens of a job) is a gauge: to Prometheus a counter that falls has begun again
from 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from loramux_runtime.live.state.job_rows import OPEN, RUNNING
from loramux_traces.errors import printable
from loramux_traces.filesafe import write_text
from loramux_traces.results import (
    CANCELLED,
    COMPLETED,
    FAILED_CRASHED,
    FAILED_DATA,
    FAILED_DIVERGED,
    FAILED_OOM,
    REJECTED,
    UNSCHEDULABLE,
)

ENDED: Final = (
    COMPLETED,
    CANCELLED,
    REJECTED,
    UNSCHEDULABLE,
    FAILED_OOM,
    FAILED_DIVERGED,
    FAILED_DATA,
    FAILED_CRASHED,
)
ENDED_FOR_S: Final = 900.0
"""Seconds that an ended job keeps its series: longer than any usual scrape interval."""
MOST_ENDED: Final = 100
MOST_LIVE: Final = 1000
MOST_LABEL: Final = 200
"""Most characters of a label's value."""

Value = float | int | bool | None
Labels = Mapping[str, str]


class Family(NamedTuple):
    """Describes a family with one sample per status, or per job.

    It has a name, what it says, and where its value is.
    """

    name: str
    help: str
    key: str
    kind: str = "gauge"


SCHEDULER: Final = (
    Family("loramux_running", "1 while the scheduler's process runs.", "running"),
    Family("loramux_draining", "1 while it takes no new jobs.", "draining"),
    Family("loramux_updated_timestamp_seconds", "When these figures were taken, in Unix time.", "updated_unix_s"),
    Family("loramux_clock_seconds", "Seconds since the state folder began.", "now_s"),
    Family("loramux_device_memory_bytes", "Memory of the device in use, as measured.", "memory_bytes"),
    Family("loramux_device_memory_capacity_bytes", "Memory of the device that jobs may use.", "capacity_bytes"),
    Family(
        "loramux_device_memory_predicted_bytes",
        "Upper bound of what the jobs on the device use.",
        "memory_predicted_bytes",
    ),
    Family("loramux_resident_jobs", "Jobs on the device.", "resident"),
    Family("loramux_waiting_jobs", "Jobs that wait for the device.", "waiting"),
    Family("loramux_tokens_per_second", "Tokens trained on a second, lately.", "tokens_per_s"),
    Family("loramux_overhead_ratio", "Share of the time that decisions and bookkeeping take.", "overhead_share"),
    Family("loramux_steps_total", "Fused steps.", "steps", "counter"),
    Family("loramux_tokens_total", "Tokens trained on.", "tokens", "counter"),
    Family("loramux_oom_events_total", "Fused steps that ran out of memory.", "oom_events", "counter"),
    Family("loramux_preemptions_total", "Times a job was taken off the device.", "preemptions", "counter"),
    Family("loramux_restarts_total", "Times the scheduler was started again.", "restarts", "counter"),
    Family("loramux_policy_errors_total", "Decisions of the policy that were refused.", "policy_errors", "counter"),
)
JOB: Final = (
    Family("loramux_job_step", "Optimizer steps done.", "step"),
    Family("loramux_job_declared_steps", "Optimizer steps the job asked for.", "total_steps"),
    Family("loramux_job_loss", "Training loss of the last step.", "loss"),
    Family("loramux_job_tokens", "Tokens the job has trained on.", "tokens"),
    Family("loramux_job_tokens_per_second", "Tokens of the job a second.", "tokens_per_s"),
    Family("loramux_job_priority", "Priority of the job.", "priority"),
    Family("loramux_job_predicted_memory_bytes", "Upper bound of the memory the job needs.", "predicted_bytes"),
    Family("loramux_job_peak_memory_bytes", "Most memory measured while the job was on the device.", "peak_bytes"),
    Family("loramux_job_preemptions", "Times the job was taken off the device.", "preemptions"),
    Family("loramux_job_oom_events", "Steps with the job that ran out of memory.", "oom_events"),
)
JOB_TIMES: Final = (
    Family("loramux_job_submit_timestamp_seconds", "When the job was submitted, in Unix time.", "submit_s"),
    Family("loramux_job_start_timestamp_seconds", "When the job was first on the device, in Unix time.", "start_s"),
    Family("loramux_job_finish_timestamp_seconds", "When the job ended, in Unix time.", "finish_s"),
    Family(
        "loramux_job_expected_finish_timestamp_seconds",
        "When the job is expected to end, in Unix time.",
        "expected_finish_s",
    ),
)


def write_prometheus(path: Path, status: Mapping[str, Any]) -> None:
    """Write `prometheus_text(status)` to `path`, atomically.

    The collector never reads half a file: the file's temporary name ends in .tmp, and the collector
    reads *.prom only. Raises StateError when it cannot be written.
    """
    write_text(path, prometheus_text(status))


def prometheus_text(status: Mapping[str, Any]) -> str:
    """Return a status (see the live scheduler) in Prometheus' text format.

    It is UTF-8, with HELP and TYPE before each family.
    """
    jobs: list[Mapping[str, Any]] = list(status["jobs"])
    shown = _with_series(jobs, float(status["now_s"]))
    ids: list[Labels] = [{"job_id": str(job["job_id"])} for job in shown]
    lines: list[str] = []

    def add(family: Family, samples: Iterable[tuple[Labels, Value]]) -> None:
        lines.extend(_family(family, samples))

    facts = {key: str(status[key]) for key in ("policy", "base_model", "device", "state_dir")}
    add(Family("loramux_scheduler_info", "What the scheduler runs; always 1.", ""), [(facts, 1)])
    for family in SCHEDULER:
        add(family, [({}, status.get(family.key))])
    counts = _by_state(status.get("states"), jobs)
    add(Family("loramux_jobs", "Jobs by state.", ""), counts)
    left_out = sum(int(count or 0) for _, count in counts) - len(shown)
    add(
        Family("loramux_jobs_without_series", "Jobs that loramux_jobs counts and no series shows.", ""),
        [({}, left_out)],
    )
    infos = [
        {**label, "method": str(job["method"]), "user": str(job.get("user") or "")}
        for label, job in zip(ids, shown, strict=True)
    ]
    add(Family("loramux_job_info", "What the job is; always 1.", ""), [(info, 1) for info in infos])
    states = [({**label, "state": str(job["state"])}, 1) for label, job in zip(ids, shown, strict=True)]
    add(Family("loramux_job_state", "1 for the state that the job is in.", ""), states)
    began = float(status["updated_unix_s"]) - float(status["now_s"])
    for families, value in ((JOB, _as_is), (JOB_TIMES, _later_than(began))):
        for family in families:
            rows = zip(ids, shown, strict=True)
            add(family, [(label, value(job.get(family.key))) for label, job in rows])
    return "".join(line + "\n" for line in lines)


def _with_series(jobs: list[Mapping[str, Any]], now_s: float) -> list[Mapping[str, Any]]:
    live = [job for job in jobs if job["state"] not in ENDED]
    live.sort(key=lambda job: (job["state"] != RUNNING, job.get("submit_s") or 0.0, job["job_id"]))
    ended = [job for job in jobs if job["state"] in ENDED and now_s - _ended_s(job) <= ENDED_FOR_S]
    ended.sort(key=lambda job: (-_ended_s(job), job["job_id"]))
    return live[:MOST_LIVE] + ended[:MOST_ENDED]


def _ended_s(job: Mapping[str, Any]) -> float:
    """Return when the job ended; for a job turned away, when it came."""
    at_s = job.get("finish_s")
    return float(job.get("submit_s") or 0.0) if at_s is None else float(at_s)


def _by_state(states: Mapping[str, int] | None, jobs: Iterable[Mapping[str, Any]]) -> list[tuple[Labels, Value]]:
    """Return the counts of all jobs; of those that are listed where there are no others."""
    counts = dict.fromkeys((*OPEN, *ENDED), 0)
    counts.update(Counter(job["state"] for job in jobs) if states is None else states)
    return [({"state": state}, count) for state, count in counts.items()]


def _as_is(value: Value) -> Value:
    return value


def _later_than(began_unix_s: float) -> Callable[[Value], Value]:
    return lambda value: None if value is None else began_unix_s + value


def _family(family: Family, samples: Iterable[tuple[Labels, Value]]) -> Iterator[str]:
    """Yield the lines of one family; none where no sample has a value."""
    known = [(labels, value) for labels, value in samples if value is not None and math.isfinite(value)]
    if not known:
        return
    yield f"# HELP {family.name} {family.help}"
    yield f"# TYPE {family.name} {family.kind}"
    for labels, value in known:
        inner = ",".join(f'{name}="{escape_label(text)}"' for name, text in labels.items())
        shown = repr(float(value)) if isinstance(value, float) else str(int(value))
        yield f"{family.name}{{{inner}}} {shown}" if inner else f"{family.name} {shown}"


def escape_label(text: str) -> str:
    """Return a label's value as the format wants it.

    Backslash, quote and newline are escaped. What cannot be printed (or is no UTF-8) is shown as
    Python's escape, and the text is cut to `MOST_LABEL` characters.
    """
    text = "\n".join(printable(line) for line in text[:MOST_LABEL].split("\n"))
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

"""Import Microsoft Philly's original `cluster_job_log`.

It is a JSON list of jobs with their scheduling attempts.

Original: https://github.com/msr-fiddle/philly-traces (`trace-data.tar.gz`, Git LFS, 1 GB),
CC-BY-4.0; cite Jeon et al., USENIX ATC 2019. Each job is {status, vc, jobid, attempts:
[{start_time, end_time, detail: [{ip, gpus: [...]}]}], submitted_time, user}.

Rule: the duration is the sum of the attempts that have both times and do not end before they start
(an attempt without is a logging error or still ran when the log was taken, says the original's
README), the GPU count that of the largest of them; jobs of no such attempt, of zero running time or
of no GPU are left out. The status is not used: a job that failed has held its GPUs all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from loramux_traces.documents import json_items
from loramux_traces.files import open_input, whole_text
from loramux_traces.importers.common import NOT_FINISHED, ImportReport, RawJob, Source, checked, moments
from loramux_traces.problems import Problems

_NO_LIST: Final = "must be one JSON list of jobs, [...]: an object, or a line of JSON for each job, is not read"


def _attempts(job: dict[str, Any], report: ImportReport) -> list[tuple[float, int]]:
    """Return (seconds, GPUs) of every attempt that has both times; the others are counted.

    Each is checked by itself: one that ends before it starts (the clock went back in autumn) must
    not be taken off the others.
    """
    found = []
    for attempt in job["attempts"]:
        detail = attempt.get("detail") if isinstance(attempt, dict) else None
        if not isinstance(detail, list):
            report.beside["attempts without machines"] += 1
            continue
        start, end = moments(report, attempt, "start_time", "end_time")
        if start is None or end is None:
            report.beside["attempts without both times"] += 1
            continue
        if end < start:
            report.beside["attempts that end before they start"] += 1
            continue
        gpus = [m["gpus"] for m in detail if isinstance(m, dict) and isinstance(m.get("gpus"), list)]
        found.append((end - start, sum(map(len, gpus))))
    return found


def read(paths: Sequence[Path], report: ImportReport) -> Iterator[RawJob]:
    """Yield the jobs of the logs, in file order.

    Raises InvalidInputError for a file that is no list of such jobs.
    """
    for path in paths:
        with open_input(path) as (label, stream):
            problems = Problems(label)
            text = whole_text(stream, problems)
            if text.lstrip().startswith("{"):
                problems.add(1, "", "", _NO_LIST)
                problems.raise_if_any()
            for line, item in json_items(text, problems, []):
                if not isinstance(item, dict) or "attempts" not in item or "submitted_time" not in item:
                    problems.add(line, "", item, "a Philly job is a mapping with jobid, attempts and submitted_time")
                    continue
                report.rows += 1
                attempts = _attempts(item, report) if isinstance(item["attempts"], list) else []
                if not attempts:
                    report.skipped[NOT_FINISHED] += 1
                    continue
                job = checked(
                    report,
                    moments(report, item, "submitted_time")[0],
                    sum(seconds for seconds, _ in attempts),
                    max(gpus for _, gpus in attempts),
                    user=str(item.get("user") or ""),
                    group=str(item.get("vc") or ""),
                    source_id=str(item.get("jobid") or ""),
                    file=str(path),
                )
                if job is not None:
                    yield job
            problems.raise_if_any()


SOURCE: Final = Source(
    name="philly-json",
    title="Microsoft Philly traces (Jeon et al., ATC 2019), cluster_job_log",
    url="https://github.com/msr-fiddle/philly-traces",
    licence="CC-BY-4.0",
    files="cluster_job_log (JSON)",
    real=("submit_s", "duration_s", "num_gpus", "user", "group"),
    read=read,
)

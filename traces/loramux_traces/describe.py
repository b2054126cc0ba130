"""Compute the facts of a trace: how bursty, how long, how skewed, how much load.

They are one mapping, which both the table and the JSON show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from loramux_traces.arrays import Floats
from loramux_traces.job import Trace

#: Values of a column that are listed; the shares of the other values are summed as `(others)`.
_TOP: Final = 8


def _law(values: Floats) -> dict[str, float | int | None]:
    """Return count, mean, p50, p90, p99, maximum and squared coefficient of variation.

    A figure is None where it is undefined.
    """
    if len(values) == 0:
        return {"count": 0, "mean": None, "p50": None, "p90": None, "p99": None, "max": None, "cv2": None}
    mean = float(values.mean())
    p50, p90, p99 = (float(q) for q in np.percentile(values, (50, 90, 99)))
    cv2 = float(values.var()) / mean**2 if mean > 0 else None
    return {
        "count": len(values),
        "mean": mean,
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": float(values.max()),
        "cv2": cv2,
    }


def _shares(values: Iterable[object]) -> dict[str, float]:
    """Return the share of the jobs with each value, the most frequent first."""
    counts = Counter(str(value) for value in values)
    total = sum(counts.values())
    # Ties go by name, so that the order of rows changes nothing.
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shares = {value: count / total for value, count in ranked[:_TOP]}
    if len(ranked) > _TOP:
        shares[f"({len(ranked) - _TOP} others)"] = sum(count for _, count in ranked[_TOP:]) / total
    return shares


def describe(trace: Trace, *, servers: int = 1) -> dict[str, Any]:
    """Return the facts of `trace`, with times in seconds.

    The result is JSON-ready: there is no NaN, and a figure that is undefined is None.

    `offered_load` is the sum of duration_s x num_gpus over (servers x the time between the first
    and last submission); it is None where not every job gives `duration_s` (steps have no time
    before a device is chosen).
    """
    submit = np.array([job.submit_s for job in trace])
    span = float(submit[-1] - submit[0])
    gaps = np.diff(submit)
    gap_law = _law(gaps)
    durations = np.array([job.duration_s for job in trace if job.duration_s is not None])
    steps = np.array([job.steps for job in trace if job.steps is not None])
    work = sum(job.duration_s * job.num_gpus for job in trace if job.duration_s is not None)
    timed = len(durations) == len(trace) and span > 0
    return {
        "schema_version": 1,
        "name": trace.name,
        "sha256": trace.sha256,
        "provenance": trace.provenance,
        "columns": list(trace.columns),
        "jobs": len(trace),
        "first_submit_s": float(submit[0]),
        "span_s": span,
        "interarrival_s": gap_law,
        "gaps_under_10s_share": float((gaps < 10).mean()) if len(gaps) else None,
        "duration_s": _law(durations),
        "declared_steps": _law(steps),
        "gpu_seconds": work if len(durations) == len(trace) else None,
        "servers": servers,
        "offered_load": work / (servers * span) if timed else None,
        "users": len({job.user for job in trace if job.user}),
        "groups": len({job.group for job in trace if job.group}),
        "num_gpus": _shares(job.num_gpus for job in trace),
        "base_model": _shares(job.base_model for job in trace),
        "method": _shares(job.method for job in trace),
        "rank": _shares(job.rank for job in trace),
        "batch_size": _shares(job.batch_size for job in trace),
        "seq_len": _shares(f"{job.seq_len:.6g}" for job in trace),
        "priority": _shares(job.priority for job in trace),
    }


def _figure(value: float | int | None, unit: str = "") -> str:
    if value is None:
        return "-"
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{text} {unit}".strip()


def fact_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (fact, its value with unit) pairs for a table."""
    span = facts["span_s"]
    rows = [
        ("jobs", _figure(facts["jobs"])),
        ("span", f"{_figure(span, 's')} ({span / 86400:.2f} days)"),
        ("inter-arrival mean", _figure(facts["interarrival_s"]["mean"], "s")),
        ("inter-arrival CV² (Poisson: 1)", _figure(facts["interarrival_s"]["cv2"])),
        ("gaps under 10 s", _percent(facts["gaps_under_10s_share"])),
    ]
    for key, label, unit in (("duration_s", "duration", "s"), ("declared_steps", "steps", "")):
        law = facts[key]
        if law["count"]:
            rows += [(f"{label} {name}", _figure(law[name], unit)) for name in ("mean", "p50", "p90", "p99", "max")]
            rows.append((f"{label} CV²", _figure(law["cv2"])))
    rows.append((f"offered load ({facts['servers']} device(s))", _figure(facts["offered_load"])))
    rows += [("users", _figure(facts["users"])), ("groups", _figure(facts["groups"]))]
    for key in ("num_gpus", "base_model", "method", "rank", "batch_size", "seq_len", "priority"):
        rows.append((key, ", ".join(f"{value} {_percent(share)}" for value, share in facts[key].items())))
    return rows


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"

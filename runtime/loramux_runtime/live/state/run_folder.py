"""This module makes a run folder of a scheduler's state folder.

`plot`, `compare` and `validate` read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from loramux_runtime.live.state.job_rows import OPEN, JobRow
from loramux_runtime.live.state.store import Store
from loramux_runtime.train.stays import stays
from loramux_traces.results import COMPLETED, JOB_COLUMNS, UNFINISHED, RunStats, empty_timeline, summarise
from loramux_traces.runfolder import write_run


def write_results(store: Store, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write the files of a run folder; return the summary.

    They are jobs.csv, events.jsonl, summary.json, timeline.json.gz and manifest.json.
    """
    jobs = job_table(store.jobs(), store.fact("base_model", ""))
    events = list(store.events())
    timeline = empty_timeline()
    capacity = float(store.fact("capacity_bytes") or 0.0)
    timeline["devices"] = [
        {"device_id": device_id, "name": store.fact("device", ""), "memory_capacity_bytes": capacity}
        for device_id in range(store.fact("devices", 1))
    ]
    timeline["segments"] = stays(events, store.fact("now_s", 0.0))
    samples = store.samples()
    t_s, device, memory, residents, waiting = zip(*samples, strict=True) if samples else ((),) * 5
    timeline["samples"] = {
        "device_id": list(device),
        "t_s": list(t_s),
        "memory_bytes": list(memory),
        "n_residents": list(residents),
    }
    timeline["queue"] = {"t_s": list(t_s), "n_waiting": list(waiting)}
    summary = summarise(jobs, _stats(store, timeline, capacity))
    write_run(
        store.folder,
        manifest={"kind": "real", "origin": "measured", "seed": 0, **manifest},
        jobs=jobs,
        events=events,
        summary={"policy": manifest.get("policy"), "seed": manifest.get("seed", 0), **summary},
        timeline=timeline,
    )
    return summary


def job_table(rows: Iterable[JobRow], base_model: str) -> pd.DataFrame:
    """Return the rows of jobs.csv (`results.JOB_COLUMNS`)."""
    found = [_result(row, base_model) for row in rows]
    return pd.DataFrame(found, columns=list(JOB_COLUMNS))


def _result(row: JobRow, base_model: str) -> dict[str, Any]:
    nan = float("nan")
    submit_s = nan if row["submit_s"] is None else row["submit_s"]
    start_s = nan if row["start_s"] is None else row["start_s"]
    finish_s = nan if row["finish_s"] is None or row["start_s"] is None else row["finish_s"]
    solo_s = nan if not row["solo_s"] else row["solo_s"]
    return {
        "job_id": row["job_id"],
        "submission_time": submit_s,
        "starting_time": start_s,
        "finish_time": finish_s,
        "waiting_time": start_s - submit_s,
        "execution_time": finish_s - start_s - row["paused_s"],
        "paused_time": row["paused_s"],
        "turnaround_time": finish_s - submit_s,
        "stretch": (finish_s - submit_s) / solo_s,
        "solo_time": solo_s,
        "final_state": UNFINISHED if row["state"] in OPEN else row["state"],
        "reason": "" if row["state"] == COMPLETED else row["reason"],
        "allocated_resources": row["devices"],
        "preemptions": row["preemptions"],
        "oom_events": row["oom_events"],
        "steps_done": row["progress_steps"],
        "tokens_done": float(row["tokens"]),
        "service_s": row["attained_s"],
        "user": row["user"],
        "group": row["group"],
        "base_model": base_model,
        "method": row["method"],
        "priority": row["priority"],
        "num_gpus": 1,
    }


def _stats(store: Store, timeline: Mapping[str, Any], capacity: float) -> RunStats:
    """Return the totals of all processes that have worked on the folder."""
    samples = timeline["samples"]
    devices = len(timeline["devices"])
    ends: dict[int, float] = {}
    busy = byte_s = 0.0
    end_s: float = store.fact("now_s", 0.0)
    rows = zip(*(samples[name] for name in ("device_id", "t_s", "memory_bytes", "n_residents")), strict=True)
    for device_id, t_s, held, n in reversed(list(rows)):  # a sample holds until the device's next
        span = max(0.0, ends.get(device_id, end_s) - t_s)
        ends[device_id] = t_s
        if n:
            busy += span
            byte_s += span * held
    return RunStats(
        n_devices=devices,
        busy_device_s=busy,
        real_tokens=float(store.fact("all_tokens", 0)),
        computed_tokens=float(store.fact("all_computed_tokens", 0)),
        memory_byte_s=byte_s,
        memory_peak_bytes=max(samples["memory_bytes"], default=0.0),
        memory_capacity_bytes=capacity,
        memory_capacity_byte_s_per_s=capacity * devices,
        steps=float(store.fact("all_steps", 0)),
        decisions=int(store.fact("all_decisions", 0)),
    )

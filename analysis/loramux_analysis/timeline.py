"""Write a run as Chrome-trace JSON, which Perfetto (ui.perfetto.dev) opens.

It shows which job was where, memory and queue.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from loramux_analysis.load import describe
from loramux_analysis.series import capacity_bytes, device_ids, samples_of, stays
from loramux_traces.filesafe import json_text, write_text
from loramux_traces.runfolder import Run

_QUEUE_PID: Final = 1
_GIB: Final = 2**30


def chrome_trace(run: Run) -> dict[str, Any]:
    """Return the trace-event object of a run.

    There is one process a device and one thread a seat, with counters of memory (GiB) and
    residents; a first process counts the waiting jobs. Times are microseconds of the run's own
    clock.
    """
    events: list[dict[str, Any]] = []
    _name(events, _QUEUE_PID, "queue", 0)
    queue = run.timeline["queue"]
    for t, waiting in zip(queue["t_s"], queue["n_waiting"], strict=True):
        events.append(_counter(_QUEUE_PID, "waiting jobs", t, {"jobs": waiting}))
    names = {device["device_id"]: device.get("name") for device in run.timeline["devices"]}
    table = stays(run)
    for place, device in enumerate(device_ids(run), start=1):
        pid = _QUEUE_PID + place
        _name(events, pid, f"device {device}" + (f" ({names[device]})" if names.get(device) else ""), place)
        mine = table[table["device_id"] == device]
        events += [
            {"ph": "M", "name": "thread_name", "pid": pid, "tid": lane + 1, "args": {"name": f"seat {lane}"}}
            for lane in sorted(int(lane) for lane in mine["lane"].unique())
        ]
        events += [
            _stay(pid, *row)
            for row in mine[["lane", "job_id", "start_s", "end_s", "method", "base_model", "user"]].itertuples(
                index=False
            )
        ]
        times, memory = samples_of(run, device, "memory_bytes")
        _, residents = samples_of(run, device, "n_residents")
        capacity = capacity_bytes(run, device)
        limit = {} if capacity is None else {"capacity": round(capacity / _GIB, 3)}
        for t, used, count in zip(times, memory, residents, strict=True):
            events.append(_counter(pid, "memory (GiB)", t, {"used": round(float(used) / _GIB, 3), **limit}))
            events.append(_counter(pid, "residents", t, {"jobs": int(count)}))
    about = {"policy": run.policy, "seed": run.seed, "about": describe([run.manifest])}
    return {"displayTimeUnit": "ms", "otherData": about, "traceEvents": events}


def write_chrome_trace(run: Run, path: Path) -> Path:
    """Write `chrome_trace` to a file, atomically, and return its path.

    Raises StateError when it cannot be written.
    """
    write_text(path, json_text(chrome_trace(run)) + "\n")
    return path


def _microseconds(t_s: float) -> int:
    """Return a time in whole microseconds.

    So a stay that begins when another ends does not overlap it by a rounding error.
    """
    return round(float(t_s) * 1e6)


def _name(events: list[dict[str, Any]], pid: int, name: str, order: int) -> None:
    """Name a process and give it its place."""
    events.append({"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}})
    events.append({"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": order}})


def _counter(pid: int, name: str, t_s: float, values: dict[str, Any]) -> dict[str, Any]:
    """Return the event for one value of a counter."""
    return {"ph": "C", "name": name, "pid": pid, "tid": 0, "ts": _microseconds(t_s), "args": values}


def _stay(pid: int, lane: int, job_id: str, start_s: float, end_s: float, *about: Any) -> dict[str, Any]:
    """Return one stay of a job as a complete event."""
    begin = _microseconds(start_s)
    args = {
        key: value
        for key, value in zip(("method", "base_model", "user"), about, strict=True)
        if isinstance(value, str) and value
    }
    return {
        "ph": "X", "name": job_id, "cat": str(args.get("method", "job")), "pid": pid, "tid": int(lane) + 1,
        "ts": begin, "dur": max(0, _microseconds(end_s) - begin) if np.isfinite(end_s) else 0, "args": args,
    }  # fmt: skip

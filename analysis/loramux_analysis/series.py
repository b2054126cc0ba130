"""Make step functions of time and stays on devices small enough to draw.

Step functions become exact time averages, and stays get lanes.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import pandas as pd

from loramux_traces.arrays import Floats, Ints
from loramux_traces.runfolder import Run


def step_average(t_s: Floats, values: Floats, edges_s: Floats) -> Floats:
    """Return the time average of a step function between each pair of edges.

    The function takes `values[i]` from `t_s[i]` on; before the first time it is 0. Averages are
    exact (differences of the integral), so that nothing is lost or aliased when a hundred thousand
    changes become some hundred points. `t_s` ascends; several values at one time: the last holds.
    """
    if not len(t_s):
        return np.zeros(len(edges_s) - 1)
    area = np.concatenate([[0.0], np.cumsum(values[:-1] * np.diff(t_s))])
    at = np.clip(np.searchsorted(t_s, edges_s, side="right") - 1, 0, None)
    integral = np.where(edges_s < t_s[0], 0.0, area[at] + values[at] * np.maximum(0.0, edges_s - t_s[at]))
    averages: Floats = np.diff(integral) / np.diff(edges_s)
    return averages


def span_s(run: Run) -> tuple[float, float]:
    """Return the first submission and the last time that anything happened.

    Both are in seconds, and at least a second apart.
    """
    timeline = run.timeline
    times = [
        *(run.jobs[name].dropna() for name in ("submission_time", "finish_time")),
        *(timeline[part]["t_s"] for part in ("samples", "queue")),
    ]
    known = [np.asarray(t, dtype=np.float64) for t in times if len(t)]
    if not known:
        return 0.0, 1.0
    first = float(run.jobs["submission_time"].min()) if len(run.jobs) else 0.0
    return first, max(first + 1.0, *(float(t.max()) for t in known))


def samples_of(run: Run, device_id: Any, column: str) -> tuple[Floats, Floats]:
    """Return times and values of one device's samples, in order of time.

    A stable sort keeps the order at equal times.
    """
    samples = run.timeline["samples"]
    mine = np.asarray(samples["device_id"]) == device_id
    t = np.asarray(samples["t_s"], dtype=np.float64)[mine]
    order = np.argsort(t, kind="stable")
    return t[order], np.asarray(samples[column], dtype=np.float64)[mine][order]


def device_ids(run: Run) -> list[Any]:
    """Return the device ids of the timeline, in its order.

    Those that only samples or segments name come after them.
    """
    timeline = run.timeline
    ids = [device["device_id"] for device in timeline["devices"]]
    others = {*timeline["samples"]["device_id"], *timeline["segments"]["device_id"]} - set(ids)
    return [*ids, *sorted(others)]


def capacity_bytes(run: Run, device_id: Any) -> float | None:
    """Return the memory of one device.

    None when the timeline does not say (or says it is without limit).
    """
    for device in run.timeline["devices"]:
        if device["device_id"] == device_id:
            capacity = device.get("memory_capacity_bytes")
            return float(capacity) if capacity else None
    return None


def stays(run: Run) -> pd.DataFrame:
    """Return one row per stay of a job on a device.

    Columns: job_id, device_id, start_s, end_s, lane, method, base_model, user. Lanes count from 0
    on each device: a stay takes the lowest that is free, so that their number is the most residents
    there were. A stay without an end lasts to the end of the run.
    """
    table = pd.DataFrame(run.timeline["segments"])
    if table.empty:
        return table.reindex(columns=[*table.columns, "lane", "method", "base_model", "user"])
    table["end_s"] = table["end_s"].astype("float64").fillna(span_s(run)[1])
    table["start_s"] = table["start_s"].astype("float64")
    table = table.sort_values(["device_id", "start_s", "job_id"], kind="stable", ignore_index=True)
    table["lane"] = 0
    for _, part in table.groupby("device_id", sort=False):
        table.loc[part.index, "lane"] = assign_lanes(part["start_s"].to_numpy(), part["end_s"].to_numpy())
    about = run.jobs.set_index("job_id")[["method", "base_model", "user"]]
    return table.join(about, on="job_id")


def assign_lanes(start_s: Floats, end_s: Floats) -> Ints:
    """Return the lowest free lane of each stay, in order of start (starts ascend).

    A stay may begin the moment another ends.
    """
    lanes = np.zeros(len(start_s), dtype=np.int64)
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    for i, (start, end) in enumerate(zip(start_s, end_s, strict=True)):
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lanes[i] = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (float(end), int(lanes[i])))
    return lanes

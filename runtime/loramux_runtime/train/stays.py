"""This module reads from the events of a run which jobs were on which devices, and when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from loramux_policies.loop.events import BEGINS, LEAVES


def stays(events: Iterable[Mapping[str, Any]], end_s: float) -> dict[str, list[Any]]:
    """Return the `segments` of the timeline from the event log.

    A stay that a killed process left open ends where the next process began (at most), one that is
    still open ends at `end_s`.
    """
    columns: dict[str, list[Any]] = {"job_id": [], "device_id": [], "start_s": [], "end_s": []}
    open_: dict[str, tuple[float, list[int]]] = {}

    def close(job_id: str, t_s: float) -> None:
        start_s, devices = open_.pop(job_id)
        for device in devices:
            for name, value in zip(columns, (job_id, device, start_s, max(start_s, t_s)), strict=True):
                columns[name].append(value)

    for row in events:
        event = row["event"]
        if event == "scheduler":
            for job_id in list(open_):
                close(job_id, row["last_s"] if "last_s" in row else row["t_s"])
        elif event in BEGINS:
            open_[row["job_id"]] = (row["t_s"], row.get("devices", [0]))
        elif event in LEAVES and row.get("job_id") in open_:
            close(row["job_id"], row["t_s"])
    for job_id in list(open_):
        close(job_id, end_s)
    return columns

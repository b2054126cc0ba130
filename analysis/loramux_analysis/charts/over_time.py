"""Draw utilisation and queue over time, one line a policy.

The panels are waiting jobs, busy devices and memory in use.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from loramux_analysis.load import Results
from loramux_analysis.series import capacity_bytes, device_ids, samples_of, span_s, step_average
from loramux_analysis.style import (
    LIMIT,
    PALETTE,
    Drawing,
    NothingToDrawError,
    colours,
    duration,
    new_figure,
    plain_numbers,
    short,
    styled,
    time_unit,
)
from loramux_traces.arrays import Floats
from loramux_traces.runfolder import Run

#: Time is cut into this many equal parts, and each is drawn as its exact time average.
_BINS: Final = 240
_PANELS: Final = (
    ("waiting_jobs", "waiting jobs"),
    ("busy_percent", "devices with a job, %"),
    ("memory_percent", "memory in use, %"),
)


def draw(results: Results) -> list[Drawing]:
    """Draw one chart, with the lowest seed of each policy.

    Raises NothingToDrawError when no run kept a timeline.
    """
    runs = {label: run for label, run in results.one_per_policy.items() if _has_samples(run)}
    if not runs:
        raise NothingToDrawError("needs runs with a timeline")
    spans = [span_s(run) for run in runs.values()]
    edges = np.linspace(min(a for a, _ in spans), max(b for _, b in spans), _BINS + 1)
    tables = [run_over_time(run, edges).assign(policy=label, seed=run.seed) for label, run in runs.items()]
    data = pd.concat(tables, ignore_index=True)[["policy", "seed", "t_s", *(name for name, _ in _PANELS)]]
    colour = colours(results.policies)
    # Policies often do the same for hours. Gaps that grow from line to line show those that lie
    # under another.
    line = {name: "-" if not i else (0.7 * i, (4.0, 0.9 * i)) for i, name in enumerate(results.policies)}
    shown = results.policies[: len(PALETTE)]  # nobody can follow more lines than that
    scale, unit = time_unit(float(edges[-1]))
    with styled():
        foot = f". Averages over {duration(float(edges[1] - edges[0]))}; one seed of each policy"
        others = len(runs) - len(set(runs) & set(shown))
        foot += f"; {others} slower policies in grey (all are in the CSV)" if others else ""
        fig = new_figure(9.6, 6.6, "Queue and utilisation over time", results.about(*runs.values()) + foot)
        for axes, (column, label) in zip(fig.subplots(len(_PANELS), 1, sharex=True), _PANELS, strict=True):
            for name, part in data.groupby("policy", sort=False):
                told_apart = str(name) in shown
                axes.plot(
                    part["t_s"] / scale, part[column], color=colour[str(name)] if told_apart else "#cccccc",
                    label=short(str(name)) if told_apart else "_", linewidth=1.4 if told_apart else 0.7,
                    linestyle=line[str(name)] if told_apart else "-",
                    zorder=2.5 if told_apart else 2,
                )  # fmt: skip
            axes.set_title(label[0].upper() + label[1:])
            axes.set_ylabel("jobs" if column == "waiting_jobs" else "%")
            axes.set_ylim(bottom=0, top=None if column == "waiting_jobs" else 105)
            plain_numbers(axes, "y")
            if column == "waiting_jobs":
                axes.set_ylim(top=max(1.0, axes.get_ylim()[1]))
                axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            if column == "memory_percent":
                axes.axhline(100, color=LIMIT, linestyle="--", linewidth=1)
        axes.set_xlim(edges[0] / scale, edges[-1] / scale)
        axes.set_xlabel(f"time since the start of the trace, {unit}")
        handles, labels = fig.axes[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside right upper")
        return [Drawing("over_time", fig, data)]


def run_over_time(run: Run, edges_s: Floats) -> pd.DataFrame:
    """Return time averages of one run between edges.

    The columns are `t_s` (middle), waiting jobs, percent of devices busy and percent of memory. The
    memory share is NaN where a device's capacity is not known.
    """
    queue = run.timeline["queue"]
    times, waiting = (np.asarray(queue[name], dtype=np.float64) for name in ("t_s", "n_waiting"))
    busy, memory, capacity = np.zeros(len(edges_s) - 1), np.zeros(len(edges_s) - 1), 0.0
    devices = device_ids(run)
    for device in devices:
        t, residents = samples_of(run, device, "n_residents")
        busy += step_average(t, (residents > 0).astype(np.float64), edges_s)
        memory += step_average(*samples_of(run, device, "memory_bytes"), edges_s)
        capacity += capacity_bytes(run, device) or np.nan
    return pd.DataFrame(
        {
            "t_s": (edges_s[1:] + edges_s[:-1]) / 2,
            "waiting_jobs": step_average(times, waiting, edges_s),
            "busy_percent": 100 * busy / max(1, len(devices)),
            "memory_percent": 100 * memory / (capacity or np.nan),
        }
    )


def _has_samples(run: Run) -> bool:
    """Say whether a run kept what this chart shows."""
    return run.has_timeline and bool(run.timeline["samples"]["t_s"])

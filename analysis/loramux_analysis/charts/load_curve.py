"""Draw turnaround against load, from a sweep.

It shows where each policy's queue starts to run away.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from loramux_analysis.compare import interval
from loramux_analysis.load import Results
from loramux_analysis.metrics import Figure, figure
from loramux_analysis.style import (
    Drawing,
    NothingToDrawError,
    colours,
    dashes,
    log_time_ticks,
    new_figure,
    short,
    styled,
)

_SHOWN: Final = ("turnaround_mean_s", "turnaround_p99_s")
_MARKERS: Final = "osD^vP*X"


def draw(results: Results) -> list[Drawing]:
    """Draw mean and p99 turnaround with a log y axis, and 95% intervals.

    Up to four policies have bands, more have whiskers. Raises NothingToDrawError below two loads.
    """
    loads = results.loads
    columns = [column for column in _SHOWN if column in results.table.columns]
    if len(loads) < 2 or not columns:
        raise NothingToDrawError("needs a sweep over at least two loads")
    rows = []
    for column in columns:
        for name in results.policies:
            for load in loads:
                found = interval(results, results.at_load(load), name, figure(column))
                if found.n:
                    rows.append(
                        {"policy": name, "metric": column, "load": load, "mean_s": found.mean, "low_s": found.low,
                         "high_s": found.high, "n": found.n, "over": found.over}
                    )  # fmt: skip
    data = pd.DataFrame(rows)
    with styled():
        kinds = [
            f"{data[data['over'] == over]['n'].max():,} {over}"
            for over in ("seeds", "jobs")
            if (data["over"] == over).any()
        ]
        foot = f". Bands or whiskers: 95% interval over {' or '.join(kinds)}" if kinds else ". No intervals"
        fig = new_figure(10.4, 4.7, "Turnaround against load", results.about() + foot)
        for axes, column in zip(fig.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
            _panel(axes, data[data["metric"] == column], figure(column), results.policies)
        handles, labels = fig.axes[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside right center")
        return [Drawing("turnaround_vs_load", fig, data)]


def _panel(axes: Axes, data: pd.DataFrame, f: Figure, names: list[str]) -> None:
    """Draw one figure over load, a line a policy."""
    colour, dash = colours(names), dashes(names)
    banded = len(names) <= 4  # more bands than that cannot be told apart
    for i, name in enumerate(names):
        part = data[data["policy"] == name]
        if part.empty:
            continue
        x, y = part["load"].to_numpy(), np.maximum(part["mean_s"].to_numpy(dtype=np.float64), 1e-3)
        low, high = (np.maximum(part[side].to_numpy(dtype=np.float64), 1e-3) for side in ("low_s", "high_s"))
        known = np.isfinite(low)
        if banded:
            axes.fill_between(x, low, high, color=colour[name], alpha=0.15, linewidth=0)
        else:
            whiskers = np.maximum(0, np.stack([y - low, high - y])[:, known])
            axes.errorbar(x[known], y[known], yerr=whiskers, fmt="none", ecolor=colour[name], elinewidth=0.9, capsize=2)
        axes.plot(
            x, y, color=colour[name], linestyle=dash[name], marker=_MARKERS[i % len(_MARKERS)], markersize=5,
            label=short(name),
        )  # fmt: skip
    unit = log_time_ticks(axes)
    loads = sorted(data["load"].unique())
    axes.set_xticks(loads if len(loads) <= 8 else loads[:: -(-len(loads) // 8)])
    axes.set_xlabel("load: solo seconds submitted per device second")
    axes.set_ylabel(f"{f.label}, {unit} (log scale)")
    axes.set_title(f.label[0].upper() + f.label[1:])

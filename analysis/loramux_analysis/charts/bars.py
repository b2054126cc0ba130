"""Draw bars per policy with 95% intervals.

They show mean turnaround, mean waiting, makespan and effective tokens per second.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from loramux_analysis.compare import interval, number
from loramux_analysis.load import Results
from loramux_analysis.metrics import Figure, figure
from loramux_analysis.style import (
    INK,
    Drawing,
    NothingToDrawError,
    colours,
    hatches,
    new_figure,
    plain_numbers,
    short,
    styled,
    time_unit,
)

_SHOWN: Final = ("turnaround_mean_s", "waiting_mean_s", "makespan_s", "effective_tokens_per_s")


def draw(results: Results) -> list[Drawing]:
    """Draw small multiples, best mean turnaround first; of a sweep, the highest load.

    Raises NothingToDrawError if there is nothing to show.
    """
    load = results.loads[-1] if results.loads else None
    table = results.table if load is None else results.at_load(load)
    columns = [column for column in _SHOWN if column in table.columns and table[column].notna().any()]
    names = [name for name in results.policies if name in set(table["policy"])]
    if not columns:
        raise NothingToDrawError("needs runs with completed jobs")
    rows = [
        {"policy": name, "metric": column, **_row(results, table, name, figure(column))}
        for column in columns
        for name in names
    ]
    data = pd.DataFrame(rows)
    with styled():
        title = "Policies side by side" + (f" at load {load:g}" if load is not None and len(results.loads) > 1 else "")
        over = sorted(set(data["over"]) - {""})
        foot = f". Whiskers: 95% interval over {', '.join(over)}" if over else ". No intervals: one seed, or one trace"
        height = 1.5 + 2 * (0.55 + 0.26 * len(names))
        fig = new_figure(9.6, height, title, results.about() + foot)
        grid = fig.subplots(2, 2, sharey=True).flat
        for axes, column in zip(grid, columns, strict=False):
            _panel(axes, data[data["metric"] == column], figure(column), names)
        for axes in list(grid):
            axes.remove()
        return [Drawing("policies", fig, data)]


def _row(results: Results, table: pd.DataFrame, name: str, f: Figure) -> dict[str, object]:
    """Return the data of one bar."""
    found = interval(results, table, name, f)
    return {"unit": f.unit, "mean": found.mean, "low": found.low, "high": found.high, "n": found.n, "over": found.over}


def _panel(axes: Axes, data: pd.DataFrame, f: Figure, names: list[str]) -> None:
    """Draw horizontal bars, whose names stay readable however many policies there are."""
    colour, hatch = colours(names), hatches(names)
    largest = float(np.nanmax(data[["mean", "high"]].to_numpy(dtype=np.float64)))
    scale, unit = time_unit(largest) if f.unit == "s" else (1.0, f.unit)
    place = np.arange(len(names))
    mean = data["mean"].to_numpy(dtype=np.float64) / scale
    low, high = (data[side].to_numpy(dtype=np.float64) / scale for side in ("low", "high"))
    bars = axes.barh(place, mean, height=0.72, color=[colour[n] for n in names], edgecolor="white")
    for bar, name in zip(bars, names, strict=True):
        bar.set_hatch(hatch[name])
    known = np.isfinite(low) & np.isfinite(high)
    if known.any():
        whiskers = np.maximum(0, np.stack([mean - low, high - mean])[:, known])
        axes.errorbar(mean[known], place[known], xerr=whiskers, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
    reach = np.where(known, np.fmax(mean, high), mean)
    for at, value, x in zip(place, mean, reach, strict=True):
        if np.isfinite(value):
            axes.annotate(number(value), (x, at), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_xlim(0, largest / scale * 1.2 or 1.0)
    axes.set_yticks(place, [short(n) for n in names])
    if not axes.yaxis_inverted():
        axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    plain_numbers(axes)
    axes.set_title(
        f.label[0].upper() + f.label[1:] + (" (less is better)" if f.lower_is_better else " (more is better)")
    )
    axes.set_xlabel(f"{f.label}, {unit}")

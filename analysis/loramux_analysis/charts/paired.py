"""Draw paired differences against a baseline.

Both policies have the same jobs, so that the luck of the draw cancels.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from loramux_analysis.compare import choose_baseline, paired
from loramux_analysis.load import Results
from loramux_analysis.metrics import Figure, figure
from loramux_analysis.style import FAINT, INK, Drawing, NothingToDrawError, new_figure, plain_numbers, short, styled

_SHOWN: Final = ("turnaround_mean_s", "waiting_mean_s", "makespan_s", "effective_tokens_per_s")
_BETTER, _WORSE, _OPEN = "#0072B2", "#D55E00", "#8a8a8a"


def draw(results: Results, baseline: str | None = None) -> list[Drawing]:
    """Draw differences in percent of the baseline with 95% intervals.

    Raises NothingToDrawError for a single policy.
    """
    base = choose_baseline(results, baseline)
    load = results.loads[-1] if results.loads else None
    table = results.table if load is None else results.at_load(load)
    others = [name for name in results.policies if name != base and name in set(table["policy"])]
    columns = [column for column in _SHOWN if column in table.columns and table[column].notna().any()]
    rows = [_row(results, table, name, base, figure(column)) for column in columns for name in others]
    data = pd.DataFrame([row for row in rows if row["pairs"]])
    if data.empty:
        raise NothingToDrawError("needs two policies that ran the same jobs")
    with styled():
        over = sorted(set(data["over"]) - {""})
        foot = ". One pair"
        if over:
            foot = f". Whiskers: 95% interval over {', '.join(over)}; grey: it holds zero"
            foot += ", or there is none (one run of each)" if data["percent_low"].isna().any() else ""
        title = f"Change against {short(base)} on the same jobs"
        title += f", load {load:g}" if load is not None and len(results.loads) > 1 else ""
        fig = new_figure(9.6, 1.6 + 2 * (0.6 + 0.31 * len(others)), title, results.about() + foot)
        grid = fig.subplots(2, 2, sharey=True).flat
        for axes, column in zip(grid, columns, strict=False):
            _panel(axes, data[data["metric"] == column], figure(column), others)
        for axes in list(grid):
            axes.remove()
        return [Drawing("paired_differences", fig, data)]


def _row(results: Results, table: pd.DataFrame, name: str, base: str, f: Figure) -> dict[str, object]:
    """Return one policy's difference, in the figure's unit and in percent of the baseline."""
    diff, change = paired(results, table, name, base, f)
    return {
        "policy": name, "baseline": base, "metric": f.column, "unit": f.unit,
        "difference": diff.mean, "difference_low": diff.low, "difference_high": diff.high,
        "percent": 100 * change.mean, "percent_low": 100 * change.low, "percent_high": 100 * change.high,
        "pairs": change.n, "over": change.over,
    }  # fmt: skip


def _panel(axes: Axes, data: pd.DataFrame, f: Figure, names: list[str]) -> None:
    """Draw dots and whiskers around the line of no difference.

    They are coloured only where the interval leaves zero out.
    """
    axes.axvline(0, color=INK, linewidth=1)
    values = data[["percent", "percent_low", "percent_high"]].to_numpy(dtype=np.float64)
    for policy, (mean, low, high) in zip(data["policy"], values.tolist(), strict=True):
        at = names.index(str(policy))
        if not np.isfinite(mean):
            continue
        good = (mean < 0) == f.lower_is_better
        colour = (_BETTER if good else _WORSE) if np.isfinite(low) and (low > 0 or high < 0) else _OPEN
        if np.isfinite(low):
            axes.errorbar(mean, at, xerr=[[mean - low], [high - mean]], fmt="none", ecolor=colour, capsize=3)
        axes.plot(mean, at, marker="o" if good else "s", color=colour, markersize=6.5, linestyle="none")
        axes.annotate(
            f"{mean:+.1f}%", (mean, at), (0, 6), textcoords="offset points", ha="center", fontsize=8, zorder=5,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip
    left, right = float(np.nanmin(values, initial=0.0)), float(np.nanmax(values, initial=0.0))
    room = max(0.14 * (right - left), 0.5)
    axes.set_xlim(left - room, right + room)
    axes.set_ylim(len(names) - 0.4, -0.75)
    axes.set_yticks(range(len(names)), [short(n) for n in names])
    plain_numbers(axes)
    axes.set_title(f.label[0].upper() + f.label[1:])
    axes.set_xlabel("← better    change, %" if f.lower_is_better else "change, %    better →", color=INK)
    axes.tick_params(axis="y", color=FAINT)

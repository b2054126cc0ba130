"""Draw simulated against real, a panel a policy.

The charts show jobs, distributions and Gantts, and the means with their intervals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from loramux_analysis.charts.gantt import draw_bars, draw_names
from loramux_analysis.load import describe
from loramux_analysis.metrics import completed
from loramux_analysis.real import turnarounds
from loramux_analysis.series import span_s, stays
from loramux_analysis.style import (
    FAINT,
    INK,
    PALETTE,
    Drawing,
    colours,
    log_time_axis,
    new_figure,
    plain_numbers,
    short,
    styled,
    time_unit,
)
from loramux_analysis.validation import JOBS_WITHIN, PolicyAgreement, Twin, Validation
from loramux_traces.runfolder import Run, run_folder_name

_REAL, _SIMULATED = PALETTE[0], PALETTE[1]
_MOST_LANES = 24


def draw(validation: Validation) -> list[Drawing]:
    """Draw all charts of a validation that there is data for.

    They are scatter, CDFs, means, and the Gantts of one real run of each policy and its simulation.
    Policies of which no job completed in every run are left out of the first three.
    """
    known = replace(validation, policies=tuple(row for row in validation.policies if row.jobs))
    with styled():
        gantts = [_gantts(validation, twin) for twin in _first_twins(validation)]
        told = [_scatter(known), _cdfs(known), _means(known)] if known.policies else []
        return [*told, *(g for g in gantts if g is not None)]


def _first_twins(validation: Validation) -> Iterator[Twin]:
    for row in validation.policies:
        yield next(twin for twin in validation.twins if twin.policy == row.policy)


def _about(validation: Validation, *twins: Twin) -> str:
    """Return the foot of a chart of these twins (none given: of all)."""
    runs = [run for twin in twins or validation.twins for run in (twin.real, *twin.simulated)]
    text = describe([run.manifest for run in runs])
    if validation.applied_factor != 1.0:
        text += f"; simulated step times multiplied by {validation.applied_factor:.3f}"
    return text


def _panels(validation: Validation, title: str, labels: tuple[str, str], *, size: float) -> tuple[Figure, list[Axes]]:
    """Make a panel a policy, up to three a row, all on the same scales."""
    n = len(validation.policies)
    columns = 2 if n == 4 else min(3, n)
    rows = -(-n // columns)
    width = max(5.4, size * columns + 0.8)
    figure = new_figure(width, 1.1 + size * rows, title, _about(validation))
    grid = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes in grid[n:]:
        axes.set_visible(False)
    for at in range(n):
        if at + columns >= n:  # nothing is below it
            grid[at].tick_params(labelbottom=True)
            grid[at].set_xlabel(labels[0])
        if at % columns == 0:
            grid[at].set_ylabel(labels[1])
    return figure, grid[:n]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _scatter(validation: Validation) -> Drawing:
    """Draw each job of each real run against its own simulation."""
    tables = []
    for repeat, twin in _numbered(validation):
        for run in twin.simulated:
            pairs = turnarounds(run, twin.real)
            tables.append(pairs.assign(policy=twin.policy, repeat=repeat, seed=run.seed))
    columns = ["policy", "repeat", "seed", "job_id", "real_s", "simulated_s"]
    data = pd.concat(tables, ignore_index=True)[columns]
    labels = ("real turnaround", "simulated turnaround (band: ±15%)")
    figure, grid = _panels(validation, "Turnaround of each job, simulated against real", labels, size=3.4)
    values = data[["real_s", "simulated_s"]].to_numpy(dtype=np.float64)
    low, high = max(1e-3, float(np.nanmin(values))), float(np.nanmax(values))
    line = np.array([low / 2, high * 2])
    for axes, row in zip(grid, validation.policies, strict=True):
        part = data[data["policy"] == row.policy]
        axes.fill_between(
            line, line * (1 - JOBS_WITHIN), line * (1 + JOBS_WITHIN), color="#e8eef2", linewidth=0, zorder=0
        )
        axes.plot(line, line, color=FAINT, linewidth=1, linestyle="--", zorder=1)
        axes.plot(
            part["real_s"].clip(lower=1e-3), part["simulated_s"].clip(lower=1e-3), "o", color=_SIMULATED,
            markersize=4, alpha=0.55, markeredgewidth=0,
        )  # fmt: skip
        log_time_axis(axes, low, high)
        axes.set_yscale("log")
        axes.set_yticks(axes.get_xticks(), [label.get_text() for label in axes.get_xticklabels()])
        axes.minorticks_off()
        axes.set_ylim(axes.get_xlim())
        axes.set_aspect("equal")
        axes.set_title(short(row.policy, 24))
        axes.annotate(
            f"90% of the jobs within {_percent(row.job_error_p90)}\nreal runs among themselves: "
            f"{_percent(row.job_noise_p90)}",
            (0.03, 0.97), xycoords="axes fraction", va="top", fontsize=7.5, color=INK,
        )  # fmt: skip
    return Drawing("jobs", figure, data)


def _numbered(validation: Validation) -> Iterator[tuple[int, Twin]]:
    """Yield the twins, those of a policy numbered from 0."""
    seen: dict[str, int] = {}
    for twin in validation.twins:
        number = seen[twin.policy] = seen.get(twin.policy, -1) + 1
        yield number, twin


def _cdf(run: Run) -> tuple[np.ndarray, np.ndarray]:
    values = np.sort(completed(run.jobs)["turnaround_time"].to_numpy(dtype=np.float64))
    return values, np.arange(1, len(values) + 1) / len(values)


def _cdfs(validation: Validation) -> Drawing:
    """Draw every run's distribution of turnaround."""
    labels = ("turnaround (log scale)", "share of completed jobs")
    figure, grid = _panels(validation, "Distribution of turnaround", labels, size=3.0)
    rows = []
    lows, highs = [], []
    for axes, row in zip(grid, validation.policies, strict=True):
        for repeat, twin in _numbered(validation):
            if twin.policy != row.policy:
                continue
            for kind, run in [("real", twin.real), *(("simulated", run) for run in twin.simulated)]:
                values, share = _cdf(run)
                if not len(values):
                    continue
                real = kind == "real"
                drawn = np.maximum(values, 1e-3)  # a log axis has no zero
                axes.step(
                    np.append(drawn, drawn[-1] * 10), np.append(share, 1.0), where="post",
                    color=_REAL if real else _SIMULATED, linestyle="-" if real else "--",
                    linewidth=1.1 if real else 1.4, alpha=0.8,
                )  # fmt: skip
                lows.append(float(drawn[0]))
                highs.append(float(drawn[-1]))
                rows.append(
                    pd.DataFrame(
                        {
                            "policy": row.policy,
                            "kind": kind,
                            "repeat": repeat,
                            "seed": run.seed,
                            "turnaround_s": values,
                            "share_of_jobs": share,
                        }
                    )
                )
        axes.set_title(short(row.policy, 24))
        axes.set_ylim(0, 1.01)
        axes.annotate(
            f"KS {row.ks:.3f}" if row.ks is not None else "", (0.97, 0.05), xycoords="axes fraction",
            ha="right", fontsize=8, color=INK,
        )  # fmt: skip
    for axes in grid:
        log_time_axis(axes, min(lows), max(highs))
    handles = [Line2D([], [], color=_REAL), Line2D([], [], color=_SIMULATED, linestyle="--")]
    figure.legend(handles, ["real", "simulated"], loc="outside upper right", ncols=2)
    return Drawing("turnaround_cdf", figure, pd.concat(rows, ignore_index=True))


def _means(validation: Validation) -> Drawing:
    """Draw the mean turnaround of each policy.

    It shows every real run, their 95% interval, and the simulation.
    """
    rows = validation.policies
    scale, unit = time_unit(max(max(row.real_high_s or row.real_mean_s, row.simulated_mean_s) for row in rows))
    figure = new_figure(7.6, 1.5 + 0.55 * len(rows), "Mean turnaround of the policies", _about(validation))
    axes = figure.add_subplot()
    for at, row in enumerate(rows):
        _mean(axes, validation, row, at, scale)
    axes.set_yticks(range(len(rows)), [short(row.policy, 30) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    # No mean is below zero, though an interval may reach there.
    axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
    axes.set_xlabel(f"mean turnaround, {unit}")
    plain_numbers(axes)
    handles = [
        Line2D([], [], color=_REAL, marker="|", markersize=9, linewidth=3, alpha=0.5),
        Line2D([], [], color=_SIMULATED, marker="D", markersize=6, linestyle="none"),
    ]
    axes.legend(handles, ["real: runs, 95% interval", "simulated"], loc="center left", bbox_to_anchor=(1.0, 0.5))
    return Drawing("means", figure, validation.table())


def _mean(axes: Axes, validation: Validation, row: PolicyAgreement, at: int, scale: float) -> None:
    if row.real_low_s is not None and row.real_high_s is not None:
        axes.plot([row.real_low_s / scale, row.real_high_s / scale], [at, at], color=_REAL, linewidth=5, alpha=0.35)
    means = [completed(t.real.jobs)["turnaround_time"].mean() for t in validation.twins if t.policy == row.policy]
    axes.plot([mean / scale for mean in means], [at] * len(means), "|", color=_REAL, markersize=13, markeredgewidth=1.6)
    axes.plot(row.simulated_mean_s / scale, at, "D", color=_SIMULATED, markersize=6.5)
    axes.annotate(
        f"{row.mean_error:+.1%}", (row.simulated_mean_s / scale, at), (0, 8), textcoords="offset points",
        ha="center", fontsize=8,
    )  # fmt: skip


def _gantts(validation: Validation, twin: Twin) -> Drawing | None:
    """Draw a real run above its simulation, on one axis of time.

    None where one of them kept no timeline, or too many jobs were together for bars.
    """
    pair = [("real", twin.real), ("simulated", twin.simulated[0])]
    tables = [(kind, stays(run).assign(kind=kind)) for kind, run in pair if run.has_timeline]
    tables = [(kind, table) for kind, table in tables if len(table)]
    if len(tables) < 2 or any(int(table["lane"].max()) >= _MOST_LANES for _, table in tables):
        return None
    spans = [span_s(run) for _, run in pair]
    first, last = min(s for s, _ in spans), max(e for _, e in spans)
    scale, unit = time_unit(last)
    data = pd.concat([table for _, table in tables], ignore_index=True)
    key = next((name for name in ("method", "user", "base_model") if data[name].nunique() > 1), "method")
    kinds = sorted(str(kind) for kind in data[key].fillna("?").unique())
    colour = colours(kinds)
    lanes = [int(table["lane"].max()) + 1 for _, table in tables]
    heights = [min(2.6, 0.8 + 0.11 * n) for n in lanes]
    title = f"{short(twin.policy, 50)}: a real run above its simulation"
    figure = new_figure(11.0, 1.7 + sum(heights) + 0.5, title, _about(validation, twin))
    grid = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    for axes, (kind, table), n in zip(grid, tables, lanes, strict=True):
        draw_bars(axes, table, key, colour, last - first, scale, n)
        draw_names(axes, table, last - first, scale)
        ended = float(table["end_s"].max())
        axes.axvline(ended / scale, color=FAINT, linewidth=1, linestyle=":")
        axes.set_title(f"{kind.capitalize()}: last job ended at {ended / scale:.4g} {unit}")
    grid[1].set_xlim(first / scale, (first + 1.01 * (last - first)) / scale)
    grid[1].set_xlabel(f"time since the start of the trace, {unit}")
    patches = [Patch(facecolor=colour[kind], label=short(kind)) for kind in kinds[:14]]
    figure.legend(handles=patches, loc="outside right upper", title=key.replace("_", " "), alignment="left")
    return Drawing(
        "gantt-" + run_folder_name(twin.policy, twin.real.seed), figure, data.rename(columns={"lane": "seat"})
    )

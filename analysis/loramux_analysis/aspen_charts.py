"""The charts of ASPEN's evaluation: published figures beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from loramux_analysis.aspen_published import ASPEN, FURTHER, METRICS, MIXED, PACKED, PARALLEL
from loramux_analysis.style import PALETTE, Drawing, new_figure, plain_numbers, short, styled

_THEIRS, _OURS = "#B8B8B8", PALETTE[0]


def draw(table: pd.DataFrame, foot: str) -> list[Drawing]:
    """Draw three charts in the one style.

    They show mixed lengths beside the published ratios, all systems as simulated, and memory of one
    more job.
    """
    with styled():
        return [_beside(table, foot), _systems(table, foot), _memory(table, foot)]


def _beside(table: pd.DataFrame, foot: str) -> Drawing:
    """Draw published and ours, relative to sequential."""
    data = table[(table["experiment"] == MIXED) & table["published_ratio"].notna() & table["our_ratio"].notna()]
    metrics = ("latency_h", "effective_tokens_per_s", "tokens_per_s", "memory_gb")
    fig = new_figure(9.6, 5.2, "Jobs of mixed lengths, relative to training them one after another", foot)
    for axes, metric in zip(fig.subplots(2, 2, sharey=True).flat, metrics, strict=True):
        part = data[data["metric"] == metric]
        _pairs(axes, list(part["system"]), part["published_ratio"].to_numpy(), part["our_ratio"].to_numpy(), "{:.2f}")
        name = METRICS[metric][0]
        axes.set_title(f"{name[0].upper()}{name[1:]}")
        axes.axvline(1.0, color="#555555", linewidth=0.9)
        axes.set_xlabel("sequential = 1")
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="upper right", ncols=2, bbox_to_anchor=(0.995, 1.0))
    return Drawing("aspen_mixed", fig, data)


def _pairs(axes: Axes, names: Sequence[str], theirs: Any, ours: Any, form: str) -> None:
    place = np.arange(len(names))
    for shift, values, colour, label in ((-0.19, theirs, _THEIRS, "published"), (0.19, ours, _OURS, "simulated")):
        axes.barh(place + shift, values, height=0.36, color=colour, label=label)
        for at, value in zip(place + shift, values, strict=True):
            axes.annotate(
                form.format(value), (value, at), (3, 0), textcoords="offset points", va="center", fontsize=8.5
            )
    axes.set_yticks(place, [short(name) for name in names])
    if not axes.yaxis_inverted():
        axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * float(np.max([*theirs, *ours])))
    axes.grid(axis="y", visible=False)
    plain_numbers(axes)


def _systems(table: pd.DataFrame, foot: str) -> Drawing:
    """Draw every system on the 8 jobs, as simulated."""
    data = table[(table["experiment"] == MIXED) & table["ours"].notna()]
    fig = new_figure(10.4, 5.6, "ASPEN's eight jobs on one A100, as simulated", foot)
    for axes, metric in zip(fig.subplots(2, 3, sharey=True).flat, METRICS, strict=True):
        part = data[data["metric"] == metric]
        names = list(part["system"])
        values = part["ours"].to_numpy(dtype=np.float64)
        place = np.arange(len(names))
        axes.barh(place, values, height=0.7, color=[PALETTE[2] if n == PACKED else _OURS for n in names])
        for at, value in zip(place, values, strict=True):
            text = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
            axes.annotate(text, (value, at), (3, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.set_yticks(place, [short(name) for name in names])
        if not axes.yaxis_inverted():
            axes.invert_yaxis()
        axes.set_xlim(0, 1.22 * float(values.max()) or 1.0)
        axes.grid(axis="y", visible=False)
        plain_numbers(axes)
        name, unit = METRICS[metric]
        axes.set_title(f"{name[0].upper()}{name[1:]}", fontsize=10)
        axes.set_xlabel(unit)
    return Drawing("aspen_systems", fig, data)


def _memory(table: pd.DataFrame, foot: str) -> Drawing:
    """Draw the memory of one more job by batch size."""
    data = table[(table["experiment"] == FURTHER) & table["ours"].notna()]
    fig = new_figure(8.4, 3.9, "Memory of one more LLaMA-7B job", foot)
    for axes, system, title in zip(
        fig.subplots(1, 2), (ASPEN, PARALLEL), ("Sharing the base model", "A process of its own"), strict=True
    ):
        part = data[data["system"].str.startswith(f"{system}, ")]
        batches = [name.rpartition(" ")[2] for name in part["system"]]
        place = np.arange(len(batches))
        for shift, side, colour, label in (
            (-0.19, "published", _THEIRS, "published"), (0.19, "ours", _OURS, "memory model"),
        ):  # fmt: skip
            values = part[side].to_numpy(dtype=np.float64)
            axes.bar(place + shift, values, width=0.36, color=colour, label=label)
            for at, value in zip(place + shift, values, strict=True):
                axes.annotate(
                    f"{value:.1f}", (at, value), (0, 2), textcoords="offset points", ha="center", fontsize=8.5
                )
        axes.set_xticks(place, batches)
        axes.set_xlabel("batch size, rows")
        axes.set_ylabel("GB")
        axes.grid(axis="x", visible=False)
        axes.set_title(title)
        axes.set_ylim(0, 1.15 * float(np.nanmax(part[["published", "ours"]].to_numpy(dtype=np.float64))))
        plain_numbers(axes, "y")
    fig.axes[0].legend(loc="upper left")
    return Drawing("aspen_memory", fig, data)


# -- text

"""Define the one visual style of all charts.

It covers colours, fonts, axes, the foot of every chart, and how a chart is saved. Figures are made
without pyplot, so that importing this changes no global state and needs no display.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from loramux_traces.filesafe import atomic, write_csv

#: Okabe and Ito's palette (readable with every common colour blindness), without the faint yellow;
#: black is kept for the text.
PALETTE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
INK: Final = "#222222"
FAINT: Final = "#8a8a8a"
#: The colour of a limit that no line may cross.
LIMIT: Final = "#B00020"
#: Beyond the palette, these tell lines and bars of one colour apart.
DASHES: Final = ("-", "--", ":", "-.")
HATCHES: Final = ("", "////", "\\\\\\\\", "xxx")

_RC: Final[Any] = {  # matplotlib's key type differs between versions
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters, and bytes, everywhere
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "hatch.linewidth": 0.6,
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "savefig.facecolor": "white",
    "svg.hashsalt": "loramux",
    "svg.fonttype": "path",
    "path.simplify": True,
    "axes.formatter.useoffset": False,
    "text.parse_math": False,  # a policy's name may hold a dollar sign
}


class NothingToDrawError(Exception):
    """A chart has no data in these runs.

    The message says what is missing. It never reaches a user as an error.
    """


@dataclass(frozen=True)
class Drawing:
    """A Drawing is a finished chart: its file name without ending, the figure, and its numbers."""

    name: str
    figure: Figure
    data: pd.DataFrame


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style for the time of the block only.

    A user's own matplotlibrc does not leak into it.
    """
    with mpl.rc_context():
        mpl.rcdefaults()  # this leaves the backend alone
        mpl.rcParams.update(_RC)
        yield


def new_figure(width: float, height: float, title: str, foot: str) -> Figure:
    """Make an empty figure (inches) with a title and a foot.

    The foot says where the numbers come from.
    """
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    lines = textwrap.wrap(foot, width=max(40, int(width * 16.5)))
    figure.text(0.008, 0.06 / height, "\n".join(lines), fontsize=7.5, color="#666666", va="bottom", ha="left")
    bottom = (0.12 + 0.135 * len(lines)) / height
    figure.set_layout_engine("constrained", rect=(0.0, bottom, 1.0, 1.0 - bottom), w_pad=0.08, h_pad=0.06)
    if title:
        figure.suptitle(title, fontsize=12.5, fontweight="bold", x=0.008, ha="left")
    return figure


def save(drawing: Drawing, folder: Path) -> list[Path]:
    """Write `<name>.png`, `.svg` and `.csv` into an existing folder, and return the paths.

    Equal numbers give equal bytes. Raises StateError when a file cannot be written.
    """
    paths = [folder / f"{drawing.name}.{ending}" for ending in ("png", "svg", "csv")]
    with styled():
        _freeze(drawing.figure)
        for path, metadata in zip(paths[:2], ({"Software": None}, {"Date": None, "Creator": None}), strict=True):
            with atomic(path) as file:
                drawing.figure.savefig(file, format=path.suffix[1:], metadata=metadata)
    write_csv(paths[2], drawing.data)
    return paths


def _freeze(figure: Figure) -> None:
    """Lay the figure out once and round where things are.

    The constraint solver's answers differ in the last bit from run to run, and an SVG's ids are
    hashes of them.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        x, y, width, height = (round(float(side), 5) for side in axes.get_position(original=True).bounds)
        axes.set_position((x, y, width, height))
    for text in figure.texts:  # the title is one of them
        at_x, at_y = text.get_position()
        text.set_position((round(float(at_x), 5), round(float(at_y), 5)))


def colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each name, by its place in the sequence.

    After seven they come again (with other dashes).
    """
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def dashes(names: Sequence[str]) -> dict[str, str]:
    """Return a line style for each name: solid for the first seven, then dashed, dotted, ...

    They come again after four such groups.
    """
    return {name: DASHES[i // len(PALETTE) % len(DASHES)] for i, name in enumerate(names)}


def hatches(names: Sequence[str]) -> dict[str, str]:
    """Return a hatch for each name; the first seven have none."""
    return {name: HATCHES[i // len(PALETTE) % len(HATCHES)] for i, name in enumerate(names)}


def time_unit(largest_s: float) -> tuple[float, str]:
    """Return the unit that keeps the numbers of an axis small: (seconds in it, its name)."""
    for seconds, name in ((86400.0 * 2, "d"), (3600.0 * 2, "h"), (60.0 * 3, "min")):
        if largest_s >= seconds:
            return {"d": 86400.0, "h": 3600.0, "min": 60.0}[name], name
    return 1.0, "s"


def duration(seconds: float) -> str:
    """Return a time span in at most three digits: `45 s`, `2.5 min`, `3.1 h`, `12 d`."""
    scale, unit = time_unit(seconds)
    value = seconds / scale
    return f"{value:.0f} {unit}" if value >= 10 or value == int(value) else f"{value:.2g} {unit}"


#: Times that people name, in seconds; on a long axis every other one is a tick.
_TICKS: Final = (
    0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400,
    3 * 86400, 7 * 86400, 14 * 86400, 30 * 86400, 90 * 86400, 365 * 86400, 1000 * 86400, 3650 * 86400,
)  # fmt: skip


def _even_ticks(low_s: float, high_s: float) -> list[float]:
    """Return round, evenly spaced times for an axis too short for a logarithmic choice."""
    scale, _ = time_unit(high_s)
    values = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low_s / scale, high_s / scale)
    return [float(v) * scale for v in values if low_s / 1.05 <= v * scale <= high_s * 1.05 and v > 0]


def log_time_axis(axes: Axes, low_s: float, high_s: float) -> None:
    """Make the x axis logarithmic in seconds, with ticks at times that people name.

    Such times are 1 s, 1 min, 1 h, 1 d.
    """
    axes.set_xscale("log")
    low_s, high_s = max(low_s, 1e-3), max(high_s, 2e-3)
    for named in (_TICKS[::2], _TICKS):
        ticks = [t for t in named if low_s / 1.15 <= t <= high_s * 1.15]
        names = [_tick(t) for t in ticks]
        if len(ticks) >= 3:
            break
    else:
        ticks, (scale, unit) = _even_ticks(low_s, high_s), time_unit(high_s)
        names = [f"{t / scale:.3g} {unit}" for t in ticks]
    axes.set_xticks(ticks, names)
    axes.minorticks_off()
    axes.set_xlim(low_s / 1.15, high_s * 1.15)


def log_time_ticks(axes: Axes) -> str:
    """Make the y axis logarithmic in one unit of time, with round ticks.

    Returns the name of the unit.
    """
    axes.set_yscale("log")
    bottom, top = axes.get_ylim()
    scale, unit = time_unit(top)
    decades = np.arange(np.floor(np.log10(bottom / scale)), np.ceil(np.log10(top / scale)) + 1)
    values = np.outer(10.0**decades, [1, 2, 5]).ravel() * scale
    ticks = [float(t) for t in values if bottom <= t <= top]
    if len(ticks) < 3:
        ticks = _even_ticks(bottom * 1.05, top / 1.05)
    ticks = ticks[:: -(-len(ticks) // 8)] if ticks else [bottom, top]
    axes.set_yticks(ticks, [f"{t / scale:.3g}" for t in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom, top)
    return unit


def _tick(seconds: float) -> str:
    """Return a tick label of `log_time_axis`."""
    for scale, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds:.3g} s"


def plain_numbers(axes: Axes, which: str = "x") -> None:
    """Use few ticks, mark thousands, and show no offsets or powers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


_LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def log_numbers(axes: Axes) -> None:
    """Make the x axis logarithmic, with 1, 2 and 5 of every decade marked as people write them.

    For example 0.05, 2, 500k, 20M.
    """
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    decades = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    ticks = [float(t) for t in np.outer(10.0**decades, [1, 2, 5]).ravel() if low <= t <= high]
    ticks = ticks[:: -(-len(ticks) // 6)] if ticks else [low, high]
    names = []
    for tick in ticks:
        scale, letter = next(((s, n) for s, n in _LARGE if tick >= s), (1.0, ""))
        names.append(f"{tick / scale:.3g}{letter}")
    axes.set_xticks(ticks, names)
    axes.minorticks_off()
    axes.set_xlim(low, high)


def short(label: str, width: int = 26) -> str:
    """Cut a label so that it fits its place."""
    return label if len(label) <= width else label[: width - 1] + "…"

"""Draw a Gantt chart: which job was where, above the memory that took.

Each device has its own panels, with the line of its capacity. There are three forms by density, so
that the chart stays readable. A bar a stay, in lanes, while bars are wide enough to see; a stacked
area of residents when they are not; and a heat map (devices x time, memory share) when there are
more devices than rows fit on a page.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from loramux_analysis.load import Results
from loramux_analysis.series import capacity_bytes, device_ids, samples_of, span_s, stays, step_average
from loramux_analysis.style import (
    INK,
    LIMIT,
    Drawing,
    NothingToDrawError,
    colours,
    new_figure,
    plain_numbers,
    short,
    styled,
    time_unit,
)
from loramux_traces.runfolder import Run, run_folder_name

_MOST_DEVICES: Final = 8
_LOW: Final = 0.05
"""Below this share of the capacity, the memory panel does not reach up to the line."""
_MOST_LANES: Final = 24
#: Stays in a lane beyond which single bars run together (a lane is about 1,400 pixels of the
#: picture).
_MOST_IN_A_LANE: Final = 300
#: A share of the chart's width. A bar thinner than this (about 4 pixels) gets an edge of its own
#: colour, because a white edge would cover all of it.
_THIN: Final = 0.003
_BINS: Final = 400
_GIB: Final = 2**30
_MEMORY: Final = "#9db4c0"


def draw(results: Results) -> list[Drawing]:
    """Draw one chart per policy (its lowest seed).

    Raises NothingToDrawError when no run kept a timeline.
    """
    runs = {label: run for label, run in results.one_per_policy.items() if run.has_timeline}
    drawings = [draw_run(run, label, results) for label, run in runs.items() if run.timeline["segments"]["job_id"]]
    if not drawings:
        raise NothingToDrawError("needs runs with a timeline in which a job ran")
    return drawings


def draw_run(run: Run, label: str, results: Results) -> Drawing:
    """Draw the chart of one run, in the form that its density asks for."""
    with styled():
        table = stays(run)
        first, last = span_s(run)
        title = f"{short(label, 60)}, seed {run.seed}: {table['job_id'].nunique()} jobs"
        name = "gantt-" + run_folder_name(label, run.seed)
        devices = device_ids(run)
        if len(devices) > _MOST_DEVICES:
            return _heat_map(run, devices, (first, last), name, title, results.about(run))
        return _panels(run, table, devices, (first, last), name, title, results.about(run))


def _panels(
    run: Run, table: pd.DataFrame, devices: list[object], span: tuple[float, float], name: str, title: str, foot: str
) -> Drawing:
    """Draw two panels a device: stays (or residents) and memory."""
    key = "method" if table["method"].nunique() > 1 else "base_model"
    kinds = sorted(str(kind) for kind in table[key].fillna("?").unique())
    colour = colours(kinds)
    scale, unit = time_unit(span[1])
    lanes = int(table["lane"].max()) + 1
    fullest = int(table.groupby(["device_id", "lane"]).size().max())
    # Beyond these limits a reader sees how many jobs there are, not which.
    bars = lanes <= _MOST_LANES and fullest <= _MOST_IN_A_LANE
    row = min(2.4, 0.7 + 0.09 * lanes) if bars else 1.2
    fig = new_figure(11.0, 1.5 + len(devices) * (row + 0.95), title, foot)
    grid = fig.subplots(2 * len(devices), 1, sharex=True, height_ratios=[row, 0.8] * len(devices), squeeze=False)[:, 0]
    for i, device in enumerate(devices):
        mine = table[table["device_id"] == device]
        upper, lower = grid[2 * i], grid[2 * i + 1]
        upper.set_title(_device_name(run, device))
        if bars:
            draw_bars(upper, mine, key, colour, span[1] - span[0], scale, lanes)
            draw_names(upper, mine, span[1] - span[0], scale)
        else:
            _residents(upper, mine, key, colour, span, scale)
        _memory(lower, run, device, span, scale)
    grid[-1].set_xlim(span[0] / scale, span[1] / scale)
    grid[-1].set_xlabel(f"time since the start of the trace, {unit}")
    patches = [Patch(facecolor=colour[kind], label=short(kind)) for kind in kinds[:14]]
    patches.append(Patch(facecolor=_MEMORY, label="memory in use"))
    fig.legend(handles=patches, loc="outside right upper", title=key.replace("_", " "), alignment="left")
    return Drawing(name, fig, table.rename(columns={"lane": "seat"}))


def draw_bars(
    axes: Axes, table: pd.DataFrame, key: str, colour: dict[str, str], width_s: float, scale: float, lanes: int
) -> None:
    """Draw one bar a stay; a thin white edge keeps neighbours apart."""
    start, end, lane = (table[name].to_numpy(dtype=np.float64) for name in ("start_s", "end_s", "lane"))
    x, y = np.stack([start, end, end, start]) / scale, np.stack([lane, lane, lane + 0.86, lane + 0.86])
    faces = [colour[str(kind)] for kind in table[key].fillna("?")]
    shapes = np.stack([x.T, y.T], axis=2)
    thin = (end - start) < _THIN * width_s
    edges = [face if slim else "white" for face, slim in zip(faces, thin, strict=True)]
    for some in (~thin, thin):  # the thin ones are drawn last, on top
        pick = np.flatnonzero(some)
        axes.add_collection(
            PolyCollection(
                list(shapes[pick]),
                facecolors=[faces[k] for k in pick],
                edgecolors=[edges[k] for k in pick],
                linewidths=0.35,
            )
        )
    axes.set_ylim(lanes, 0)
    axes.set_yticks(
        np.arange(0, lanes, max(1, lanes // 6)) + 0.43, [str(n) for n in range(0, lanes, max(1, lanes // 6))]
    )
    axes.set_ylabel("seat")
    axes.grid(axis="y", visible=False)


def draw_names(axes: Axes, table: pd.DataFrame, width_s: float, scale: float) -> None:
    """Write job ids in the bars that have room for them."""
    for job_id, start, end, lane in table[["job_id", "start_s", "end_s", "lane"]].itertuples(index=False):
        if end - start > 0.0075 * width_s * (len(job_id) + 1):
            axes.text(
                (start + end) / 2 / scale, lane + 0.43, job_id,
                ha="center", va="center", fontsize=6.5, color="white", clip_on=True,
            )  # fmt: skip


def _residents(
    axes: Axes, table: pd.DataFrame, key: str, colour: dict[str, str], span: tuple[float, float], scale: float
) -> None:
    """Draw a stacked area of how many jobs of each kind were there.

    Its values are exact averages over short bins.
    """
    edges = np.linspace(*span, _BINS + 1)
    stacks = []
    for kind in colour:
        part = table[table[key].fillna("?") == kind]
        times = np.concatenate([part["start_s"], part["end_s"]])
        steps = np.concatenate([np.ones(len(part)), -np.ones(len(part))])
        order = np.argsort(times, kind="stable")
        stacks.append(step_average(times[order], np.cumsum(steps[order]), edges))
    middles = (edges[1:] + edges[:-1]) / 2 / scale
    axes.stackplot(middles, stacks, colors=list(colour.values()), linewidth=0, step="mid")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("residents")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _memory(axes: Axes, run: Run, device: object, span: tuple[float, float], scale: float) -> None:
    """Draw the memory in use, and the line that it must not cross.

    It is the largest within each bin, so that no peak is hidden.
    """
    t, memory = samples_of(run, device, "memory_bytes")
    if len(t) > 2 * _BINS:
        edges = np.linspace(*span, _BINS + 1)
        before = memory[np.clip(np.searchsorted(t, edges[:-1], side="right") - 1, 0, None)]
        before = np.where(edges[:-1] < t[0], 0.0, before)
        slot = np.clip(np.searchsorted(edges, t, side="right") - 1, 0, _BINS - 1)
        np.maximum.at(before, slot, memory)
        t, memory = edges[:-1], before
    if len(t):
        t, memory = np.append(t, span[1]), np.append(memory, memory[-1])
        axes.fill_between(t / scale, memory / _GIB, step="post", color=_MEMORY, linewidth=0)
    capacity = capacity_bytes(run, device)
    top = float(memory.max()) / _GIB if len(memory) else 1.0
    # No line is drawn far above the memory, because a few MiB of a large machine would then not be
    # seen.
    if capacity is not None and top < _LOW * capacity / _GIB:
        axes.annotate(
            f"capacity {capacity / _GIB:.4g} GiB, far above", (1.0, 1.0), (-2, -2), xycoords="axes fraction",
            textcoords="offset points", color=LIMIT, fontsize=8, ha="right", va="top",
        )  # fmt: skip
    elif capacity is not None:
        axes.axhline(capacity / _GIB, color=LIMIT, linestyle="--", linewidth=1.2)
        axes.annotate(
            f"capacity {capacity / _GIB:.4g} GiB", (1.0, capacity / _GIB), (-2, 2), xycoords=("axes fraction", "data"),
            textcoords="offset points", color=LIMIT, fontsize=8, ha="right", va="bottom",
        )  # fmt: skip
        top = max(top, capacity / _GIB)
    axes.set_ylim(0, top * 1.35 or 1.0)
    axes.set_ylabel("GiB")
    plain_numbers(axes, "y")


def _heat_map(run: Run, devices: list[object], span: tuple[float, float], name: str, title: str, foot: str) -> Drawing:
    """Draw devices x time, coloured by the share of memory in use: the form for many devices."""
    edges = np.linspace(*span, _BINS + 1)
    scale, unit = time_unit(span[1])
    shares, rows = [], []
    for device in devices:
        average = step_average(*samples_of(run, device, "memory_bytes"), edges)
        share = 100 * average / (capacity_bytes(run, device) or np.nan)
        shares.append(share)
        rows.append(pd.DataFrame({"device_id": device, "t_s": (edges[1:] + edges[:-1]) / 2, "memory_percent": share}))
    fig = new_figure(11.0, min(10.0, 2.2 + 0.11 * len(devices)), title, foot + ". More devices than fit as bars")
    axes = fig.add_subplot()
    image = axes.imshow(
        np.asarray(shares), aspect="auto", cmap="cividis", vmin=0, vmax=100, interpolation="nearest",
        extent=(span[0] / scale, span[1] / scale, len(devices) - 0.5, -0.5),
    )  # fmt: skip
    step = max(1, -(-len(devices) // 16))
    axes.set_yticks(range(0, len(devices), step), [str(d) for d in devices[::step]])
    axes.set_ylabel("device")
    axes.set_xlabel(f"time since the start of the trace, {unit}")
    axes.grid(visible=False)
    bar = fig.colorbar(image, ax=axes, pad=0.01)
    bar.set_label("memory in use, % of capacity", color=INK)
    return Drawing(name, fig, pd.concat(rows, ignore_index=True))


def _device_name(run: Run, device: object) -> str:
    """Return a title such as `Device 0 (a100-80g)`."""
    names = {d["device_id"]: d.get("name") for d in run.timeline["devices"]}
    return f"Device {device}" + (f" ({names[device]})" if names.get(device) else "")

"""Set ASPEN's published evaluation (arXiv 2312.02515) beside ours.

It gives figures as data, tables, charts and Markdown. Marks say how a published figure was
obtained: V read in a source, D digitised from the authors' vector figures (about 1% accurate), I
inferred. Hours depend on rows and epochs that the authors do not state, so that what is compared is
each system's ratio to a baseline of its own experiment; absolute figures stand beside them for the
record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from loramux_analysis.aspen_charts import draw
from loramux_analysis.aspen_published import (
    ADAPTIVE,
    ASPEN,
    EXPERIMENTS,
    GB,
    HOUR_S,
    IDENTICAL,
    M1,
    M1_SORTED,
    M2,
    M3,
    M4,
    MARKS,
    METRICS,
    MIXED,
    PACKED,
    PARALLEL,
    PUBLISHED,
    SEQUENTIAL,
    THROUGHPUT,
    TOKENS_PER_S,
)
from loramux_analysis.style import save
from loramux_traces.filesafe import plain, write_csv, write_text

TABLE_COLUMNS: Final = (
    "experiment", "system", "metric", "unit", "published", "mark", "ours", "difference",
    "baseline", "published_ratio", "our_ratio", "ratio_difference", "kind",
)  # fmt: skip


class Ours(NamedTuple):
    """An Ours object is one figure of ours.

    `kind`: check (predicted), fit (used to choose a constant, so that agreement says little),
    context (another workload: only ratios compare), or ours (nothing published).
    """

    experiment: str
    system: str
    metric: str
    value: float
    kind: str = "check"


def figures_of(experiment: str, system: str, summary: Mapping[str, Any], kind: str = "check") -> list[Ours]:
    """Take the figures of one run out of its summary, in the published units.

    The summary is that of `loramux_traces.results.summarise`.
    """
    real, pads = float(summary["effective_tokens_per_s"]), float(summary["padding_fraction"])
    values = {
        "latency_h": float(summary["makespan_s"]) / HOUR_S,
        "turnaround_h": _hours(summary["turnaround_s"]["mean"]),
        "waiting_h": _hours(summary["waiting_s"]["mean"]),
        "tokens_per_s": real / (1.0 - pads) if pads < 1.0 else 0.0,
        "effective_tokens_per_s": real,
        "memory_gb": float(summary["memory_peak_bytes"]) / GB,
    }
    return [Ours(experiment, system, metric, value, kind) for metric, value in values.items() if value is not None]


def _hours(seconds: float | None) -> float | None:
    return None if seconds is None else float(seconds) / HOUR_S


def compare(ours: Sequence[Ours]) -> pd.DataFrame:
    """Return published figures and ours side by side.

    The table has TABLE_COLUMNS and one row per (experiment, system, metric) that either side has.
    `difference` is ours / published - 1. Ratios are to the experiment's baseline (EXPERIMENTS) on
    the same side, and `ratio_difference` is our ratio / theirs - 1. Missing figures are NaN in the
    table and null in JSON.
    """
    theirs = {(p.experiment, p.system, p.metric): p for p in PUBLISHED}
    mine = {(o.experiment, o.system, o.metric): o for o in ours}
    rows = []
    for key in sorted({*theirs, *mine}, key=_place):
        experiment, system, metric = key
        p, o = theirs.get(key), mine.get(key)
        base = EXPERIMENTS[experiment][1]
        base_key = (experiment, base, metric)
        published = float("nan") if p is None else p.value
        own = float("nan") if o is None else o.value
        their_ratio = _ratio(published, theirs[base_key].value if base_key in theirs else float("nan"))
        our_ratio = _ratio(own, mine[base_key].value if base_key in mine else float("nan"))
        kind = ("not simulated" if o is None else o.kind) if p is not None else "ours"
        rows.append(
            (experiment, system, metric, METRICS[metric][1], published, "" if p is None else p.mark, own,
             _ratio(own, published) - 1.0, base, their_ratio, our_ratio, _ratio(our_ratio, their_ratio) - 1.0, kind)
        )  # fmt: skip
    return pd.DataFrame(rows, columns=list(TABLE_COLUMNS))


_SYSTEMS: Final = (SEQUENTIAL, PARALLEL, M1, M1_SORTED, M2, M3, M4, ASPEN, PACKED)


def _place(key: tuple[str, str, str]) -> tuple[int, int, int, str]:
    experiment, system, metric = key
    order = _SYSTEMS.index(system) if system in _SYSTEMS else len(_SYSTEMS)
    published = [p.system for p in PUBLISHED if p.experiment == experiment]
    if system not in _SYSTEMS and system in published:
        order += 1 + published.index(system)
    return (list(EXPERIMENTS).index(experiment), list(METRICS).index(metric), order, system)


def _ratio(a: float, b: float) -> float:
    return a / b if isfinite(a) and isfinite(b) and b != 0.0 else float("nan")


CLAIM_COLUMNS: Final = ("claim", "published", "figures", "ours", "how")


def claims(table: pd.DataFrame) -> pd.DataFrame:
    """Return the abstract's claims: what it says, what the authors' own figures give, and ours.

    Changes are fractions. The abstract makes four claims; two more rows explain them.
    """

    def value(side: str, experiment: str, system: str, metric: str) -> float:
        found = table[(table["experiment"] == experiment) & (table["system"] == system) & (table["metric"] == metric)]
        return float(found[side].iloc[0]) if len(found) else float("nan")

    def change(side: str, experiment: str, metric: str, system: str, base: str) -> float:
        return _ratio(value(side, experiment, system, metric), value(side, experiment, base, metric)) - 1.0

    def gain(side: str, names: Sequence[str]) -> float:
        gains = [change(side, THROUGHPUT, "tokens_per_s", f"{n}, {ASPEN}", f"{n}, {PARALLEL}") for n in names]
        known = [g for g in gains if isfinite(g)]
        return float(np.mean(known)) if known else float("nan")

    simulated = [
        name
        for name in TOKENS_PER_S
        if all(isfinite(value("ours", THROUGHPUT, f"{name}, {s}", "tokens_per_s")) for s in (PARALLEL, ASPEN))
    ]
    rows = [
        ("GPU memory, 4 jobs", -0.53, change("published", IDENTICAL, "memory_gb", ASPEN, PARALLEL),
         change("ours", IDENTICAL, "memory_gb", ASPEN, PARALLEL), "shared base against 4 processes, batch 4"),
        ("throughput", 0.17, gain("published", list(TOKENS_PER_S)), float("nan"),
         "mean gain over parallel processes, 8 configurations"),
        (f"throughput, the {len(simulated)} we model", float("nan"), gain("published", simulated),
         gain("ours", simulated), ", ".join(simulated)),
        ("turnaround", -0.24, change("published", ADAPTIVE, "turnaround_h", M4, M2),
         change("ours", ADAPTIVE, "turnaround_h", M4, M1_SORTED), "theirs M4 against M2, ours against M1 (both sort)"),
        ("waiting (what the 24% is)", -0.24, change("published", ADAPTIVE, "waiting_h", M4, M2), float("nan"),
         f"ours: {HOUR_S * value('ours', ADAPTIVE, M4, 'waiting_h'):,.1f} s against "
         f"{HOUR_S * value('ours', ADAPTIVE, M1_SORTED, 'waiting_h'):,.0f} s, for our M4 admits all 8 jobs at once"),
        ("end-to-end latency", -0.12, change("published", ADAPTIVE, "latency_h", M4, M2),
         change("ours", ADAPTIVE, "latency_h", M4, M1_SORTED), "as turnaround"),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(CLAIM_COLUMNS))


def order_holds(table: pd.DataFrame) -> bool:
    """Say whether latency on mixed lengths comes out as published: minpad < sequential < fifo."""
    rows = table[(table["experiment"] == MIXED) & (table["metric"] == "latency_h")].set_index("system")["ours"]
    return bool(rows[M3] < rows[SEQUENTIAL] < rows[M1])


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as JSON objects; what is missing is null, never NaN."""
    rows: list[dict[str, Any]] = plain(table.to_dict(orient="records"))
    return rows


# -- charts


#: Columns of `table_cells`.
SHOWN: Final = (
    "system", "figure", "published", "ours", "difference", "ratio published", "ratio ours", "ratio difference", "kind",
)  # fmt: skip


def table_cells(part: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return one experiment's rows as text under SHOWN."""
    return [
        (
            str(row.system),
            f"{METRICS[str(row.metric)][0]}, {METRICS[str(row.metric)][1]}",
            _number(row.published) + (f" [{row.mark!s}]" if row.mark else ""),
            _number(row.ours),
            _percent(row.difference),
            _number(row.published_ratio),
            _number(row.our_ratio),
            _percent(row.ratio_difference),
            str(row.kind),
        )
        for row in part.itertuples(index=False)
    ]


def _number(value: Any) -> str:
    number = float(value)
    if not isfinite(number):
        return "-"
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.2f}"


def _percent(value: Any) -> str:
    number = float(value)
    return f"{100 * number:+.1f}%" if isfinite(number) else "-"


def claim_cells(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return the claims as text under CLAIM_COLUMNS."""
    return [
        (str(row.claim), _percent(row.published), _percent(row.figures), _percent(row.ours), str(row.how))
        for row in table.itertuples(index=False)
    ]


def markdown(
    table: pd.DataFrame, about: Sequence[str], sensitivity: pd.DataFrame, pictures: Sequence[str], why: str = ""
) -> str:
    """Write the report as Markdown and return it.

    `about`: paragraphs (command, versions, assumptions) after the title; `sensitivity`: hours of
    other settings, one a row, as they are; `why`: a paragraph after them.
    """
    lines = ["# ASPEN's evaluation, simulated", ""]
    for paragraph in about:
        lines += [paragraph, ""]
    verdict = "comes out of" if order_holds(table) else "does NOT come out of"
    lines += [
        "**The published order of latency on mixed lengths, minpad < sequential < fifo, "
        f"{verdict} the model with the rows in the order that each system is taken to have used; "
        "the last table says where it does not hold.**",
        "",
        "## Claims",
        "",
        *_md(("claim", "abstract", "authors' figures", "ours", "how"), claim_cells(claims(table))),
        "",
    ]
    for experiment in dict.fromkeys(table["experiment"].astype(str)):
        part = table[table["experiment"] == experiment]
        text, base = EXPERIMENTS[experiment]
        if not part["ours"].notna().any():
            lines += [f"## {experiment}: {text} (quoted, not simulated)", ""]
            rows = [(cells[0], cells[1], cells[2]) for cells in table_cells(part)]
            lines += [*_md(SHOWN[:3], rows), ""]
            continue
        lines += [f"## {experiment}: {text}" + (f"; ratios to {base}" if base else ""), ""]
        lines += [*_md(SHOWN, table_cells(part)), ""]
    lines += ["## What the order depends on", "", *_md(list(sensitivity.columns), _sensitivity_cells(sensitivity)), ""]
    lines += [why, ""] if why else []
    for picture in pictures:
        lines += [f"![{picture.partition('.')[0]}]({picture})", ""]
    marks = "; ".join(f"{mark}: {text}" for mark, text in MARKS.items())
    lines += [
        f"Marks: {marks}. check: predicted; fit: used to choose a constant; context: another workload, only "
        "ratios compare; ours: nothing published.",
        "",
    ]
    return "\n".join(lines)


def _sensitivity_cells(table: pd.DataFrame) -> list[tuple[str, ...]]:
    return [
        tuple(_number(cell) if isinstance(cell, float) else str(cell) for cell in row)
        for row in table.itertuples(index=False)
    ]


def _md(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]


def write(
    folder: Path, table: pd.DataFrame, about: Sequence[str], sensitivity: pd.DataFrame, foot: str, why: str = ""
) -> list[Path]:
    """Write evaluation.csv, sensitivity.csv, evaluation.md and the charts into an existing folder.

    Raises StateError when the folder cannot be written.
    """
    pictures = [path for drawing in draw(table, foot) for path in save(drawing, folder)]
    names = [path.name for path in pictures if path.suffix == ".png"]
    write_csv(folder / "evaluation.csv", table)
    write_csv(folder / "sensitivity.csv", sensitivity)
    write_text(folder / "evaluation.md", markdown(table, about, sensitivity, names, why))
    return [folder / "evaluation.md", folder / "evaluation.csv", folder / "sensitivity.csv", *pictures]

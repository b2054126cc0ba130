"""This module says what a sweep has found: its report, and the table that fits 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loramux_cli.words import duration

if TYPE_CHECKING:
    import pandas as pd

    from loramux_simulator.sweep import SweepPlan

COLUMNS = ("done", "turnaround\nmean", "\nlow", "\nhigh", "\np95", "make-\nspan")


def sweep_report(plan: SweepPlan, table: pd.DataFrame) -> dict[str, Any]:
    """Return what the rows come to: a mean with its interval for each policy and load.

    Beside it: where the jobs come from, what a seed redrew, and what a reader must know.
    """
    from loramux_simulator.seeds import redraw_sentence
    from loramux_simulator.sweep import Generated
    from loramux_traces.overload import overload_note
    from loramux_traces.tidy import FAILED_COLUMN

    errors = (
        table[FAILED_COLUMN].fillna("").astype(str) if FAILED_COLUMN in table else table["policy"].map(lambda _: "")
    )
    good, bad = table[errors == ""], table[errors != ""]
    generated = isinstance(plan.trace, Generated)
    redrawn = [part for text in texts(good, "seed_redraws") for part in text.split("; ") if part]
    sentences = []
    if len(plan.seeds) > 1:
        sentences.append(redraw_sentence(list(dict.fromkeys(redrawn)), generated=generated))
    if "offered_load" in table and (note := overload_note(float(value) for value in table["offered_load"].dropna())):
        sentences.append(note)
    return {
        "schema_version": 1,
        "trace": plan.describe()["trace"],
        "notes": [*sentences, *_unfit(good)],
        "intervals": _intervals(good, generated=generated),
        "policy_errors": [
            {"policy": str(policy), "runs": len(rows), "error": str(rows[FAILED_COLUMN].iloc[0])}
            for policy, rows in bad.groupby("policy", sort=False)
        ],
    }


def _intervals(table: pd.DataFrame, *, generated: bool) -> list[dict[str, Any]]:
    """Return a row a policy and load, by load and then by mean turnaround."""
    import numpy as np

    from loramux_analysis.intervals import of_batches, over_seeds
    from loramux_traces.batches import batch_column, read_batches

    rows: list[dict[str, Any]] = []
    if table.empty:
        return rows
    for (load, policy), part in table.groupby(["load", "policy"], dropna=False, sort=False):
        values = part["turnaround_mean_s"].to_numpy(dtype=np.float64)
        known = values[np.isfinite(values)]
        mean = float(known.mean()) if len(known) else np.nan
        if generated and len(part) > 1:
            found = over_seeds(values)
        else:
            batches = [read_batches(text) for text in texts(part, batch_column("turnaround_s"))]
            whole = batches and len(batches) == len(part) and all(map(len, batches))
            found = of_batches(
                np.mean(batches, axis=0) if whole else np.zeros(0), mean, round(part["completed"].mean())
            )
        rows.append(
            {
                "load": None if load != load else load,
                "policy": str(policy),
                "runs": len(part),
                "jobs": int(part["jobs"].sum()),
                "completed": int(part["completed"].sum()),
                "turnaround_mean_s": mean,
                "turnaround_low_s": max(0.0, found.low) if found.known else None,
                "turnaround_high_s": found.high if found.known else None,
                "n": found.n,
                "interval_over": found.over,
                "turnaround_p95_s": part["turnaround_p95_s"].mean(),
                "makespan_s": part["makespan_s"].mean(),
            }
        )
    return sorted(rows, key=lambda row: (row["load"] is None, row["load"] or 0.0, _last(row["turnaround_mean_s"])))


def _last(value: float) -> float:
    return value if value == value else float("inf")


def _unfit(table: pd.DataFrame) -> list[str]:
    """Say how many jobs did not complete, under which policy and load, and which fit no device."""
    lines: list[str] = []
    if table.empty:
        return lines
    for (load, policy), rows in table.groupby(["load", "policy"], dropna=False, sort=False):
        words = (("unschedulable", "fit no device"), ("failed", "failed"), ("rejected", "were turned away"))
        counts = [f"{count:,} {word}" for key, word in words if (count := int(rows[key].sum()))]
        if counts:
            names = list(dict.fromkeys(name for text in texts(rows, "unfit_jobs") for name in text.split()))
            named = f", for example {', '.join(names[:3])}" if names else ""
            at = "" if load != load else f" at load {load:.12g}"
            lines.append(f"{policy}{at}: of {int(rows['jobs'].sum()):,} jobs {' and '.join(counts)}{named}.")
    return lines


def texts(table: pd.DataFrame, column: str) -> list[str]:
    """Return the texts of a column that tables of older sweeps may lack."""
    return [str(text) for text in table[column].dropna()] if column in table.columns else []


def show_sweep(report: dict[str, Any]) -> None:
    """Print the table, where its jobs come from, and what its intervals mean."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from loramux_traces.errors import printable

    console = Console()
    console.width = max(console.width, 80)
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    rows = report["intervals"]
    loads = any(row["load"] is not None for row in rows)
    if loads:
        shown.add_column("load", justify="right")
    shown.add_column("policy", overflow="fold")
    for column in ("runs", *COLUMNS):
        shown.add_column(column, justify="right", no_wrap=True)
    before = rows[0]["load"] if rows else None
    for row in rows:
        if row["load"] != before:
            shown.add_section()
        before = row["load"]
        times = ("turnaround_mean_s", "turnaround_low_s", "turnaround_high_s", "turnaround_p95_s", "makespan_s")
        cells = [*(["-" if row["load"] is None else f"{row['load']:.12g}"] if loads else []), row["policy"]]
        cells += [str(row["runs"]), f"{row['completed']:,}/{row['jobs']:,}", *(duration(row[name]) for name in times)]
        shown.add_row(*(Text(printable(cell)) for cell in cells))
    for row in report["policy_errors"]:
        cells = [*(["-"] if loads else []), row["policy"], str(row["runs"]), "failed"]
        shown.add_row(*(Text(printable(cell)) for cell in cells), *("-" for _ in range(5)))
    console.print(shown)
    kinds = sorted({row["interval_over"] for row in rows} - {""})
    how = {"seeds": "over seeds, which drew their own jobs", "jobs": "over the jobs of one trace, in 5 batches"}
    lines = [
        f"low, high: 95% interval of the mean turnaround {' or '.join(how[kind] for kind in kinds)}." if kinds else ""
    ]
    trace = report["trace"]
    lines.append(f"Simulated. {trace['name']}: {trace.get('provenance') or 'provenance unknown'}")
    for line in [*report["notes"], *lines]:
        if line:
            console.print(Text(printable(line)))
    console.print("What the columns mean: loramux sweep -h", style="dim")

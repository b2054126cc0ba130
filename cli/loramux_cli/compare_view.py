"""This module prints what `compare` has found, in tables that fit 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from loramux_cli.words import duration, gain
from loramux_traces.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from loramux_analysis.compare import Comparison
    from loramux_analysis.load import Results
    from loramux_analysis.metrics import Figure
    from loramux_analysis.real import RealComparison

SHOWN = (
    "turnaround_mean_s",
    "waiting_mean_s",
    "turnaround_p99_s",
    "makespan_s",
    "effective_tokens_per_s",
    "padding_fraction",
)
WIDTH = 80


def show_comparison(results: Results, comparison: Comparison, real: list[tuple[str, RealComparison]]) -> None:
    """Print a table for each figure that has an interval, one for the others, and the legend."""
    from rich.console import Console
    from rich.text import Text

    from loramux_analysis.metrics import figure
    from loramux_analysis.report import REAL_COLUMNS, real_cells

    console = Console()
    console.width = max(console.width, WIDTH)
    table = comparison.table
    present = [column for column in SHOWN if (table["metric"] == column).any()]
    sure = [c for c in present if table[(table["metric"] == c) & (table["over"] != "")].shape[0]]
    for column in sure:
        _figure(console, comparison, figure(column))
    bare = [column for column in present if column not in sure]
    if bare:
        _bare(console, comparison, [figure(column) for column in bare])
    console.print(Text(printable(comparison.legend())))
    for note in comparison.notes:
        console.print(Text(printable(note)))
    console.print("What the columns mean: loramux compare -h", style="dim")
    if real:
        grid = _grid("Simulated against real", REAL_COLUMNS, 1)
        for name, found in real:
            grid.add_row(*(Text(printable(cell)) for cell in real_cells(name, found)))
        console.print(grid)
    if len(results.policies) == 1:
        console.print("One policy: give the folder of another run to compare it with.", soft_wrap=True)


def _figure(console: Console, comparison: Comparison, f: Figure) -> None:
    """Print one figure of every policy: mean, interval, how many, and the paired change."""
    from rich.text import Text

    from loramux_analysis.compare import percent

    rows = comparison.table[comparison.table["metric"] == f.column].to_dict("records")
    loads = any(row["load"] == row["load"] and row["load"] is not None for row in rows)
    names = [*(["load"] if loads else []), "policy", "mean", "low", "high", "n", "change", "low", "high"]
    grid = _grid(_title(f), names, 2 if loads else 1)
    before: Any = None
    for row in rows:
        if before is not None and row["load"] != before and row["load"] == row["load"]:
            grid.add_section()
        before = row["load"]
        # the difference goes under the percentage, so that all fits 80 columns
        changes = [
            percent(row[share]) + ("" if percent(row[share]) == "-" or f.unit != "s" else f"\n{gain(row[diff])}")
            for share, diff in (("change", "diff"), ("change_low", "diff_low"), ("change_high", "diff_high"))
        ]
        cells = [*([_load(row["load"])] if loads else []), printable(str(row["policy"]))]
        cells += [_value(f, row[side]) for side in ("mean", "low", "high")]
        grid.add_row(*(Text(cell) for cell in (*cells, f"{row['n']:,}", *changes)))
    console.print(grid)


def _bare(console: Console, comparison: Comparison, figures: list[Figure]) -> None:
    """Print the figures that have no interval, with the paired change below each."""
    from rich.text import Text

    from loramux_analysis.compare import percent

    table = comparison.table
    loads = table["load"].notna().any()
    names = [*(["load"] if loads else []), "policy", *(f.short or f.label for f in figures)]
    grid = _grid("Without an interval", [name.removesuffix(" s") for name in names], 2 if loads else 1)
    for (load, policy), part in table.groupby(["load", "policy"], sort=False, dropna=False):
        rows = {str(row["metric"]): dict(row) for row in part.to_dict("records")}
        cells = [*([_load(load)] if loads else []), printable(str(policy))]
        for f in figures:
            row = rows.get(f.column)
            change = "" if row is None else percent(float(row["change"]))
            cells.append("-" if row is None else _value(f, row["mean"]) + (f"\n({change})" if change != "-" else ""))
        grid.add_row(*(Text(cell) for cell in cells))
    console.print(grid)


def _grid(title: str, columns: Any, left: int) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for place, column in enumerate(columns):
        kind: Literal["left", "right"] = "left" if place < left else "right"
        grid.add_column(Text(printable(column)), justify=kind, overflow="fold", no_wrap=False)
    return grid


def _title(f: Figure) -> str:
    from loramux_analysis.compare import unit_of

    unit = "" if f.unit == "s" else f", {unit_of(f)}"
    return f"{f.label[0].upper()}{f.label[1:]}{unit} ({'lower' if f.lower_is_better else 'higher'} is better)"


def _value(f: Figure, value: float) -> str:
    from loramux_analysis.compare import number, shown

    return duration(float(value)) if f.unit == "s" else number(shown(f, float(value)))


def _load(value: Any) -> str:
    return "-" if value is None or value != value else f"{value:.12g}"

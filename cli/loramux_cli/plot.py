"""This module is `loramux plot` and `loramux compare`.

They make charts and tables of runs that are already there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from loramux_analysis.compare import Comparison
    from loramux_analysis.real import RealComparison

_Runs = Annotated[
    list[Path],
    typer.Argument(metavar="RUN_DIR...", help="Run folders, folders of runs, or sweep folders.", show_default=False),
]
_Baseline = Annotated[
    str | None,
    typer.Option(help="Policy to compare the others with (default: exclusive, sequential, fifo, or the slowest)."),
]


def plot_command(
    runs: _Runs,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the charts (default: plots/ in RUN_DIR, or here for several).")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="Chart to draw, repeatable: cdf, bars, paired, gantt, time, load, padding, real, perfetto "
            "(default: every picture there is data for)."
        ),
    ] = None,
    baseline: _Baseline = None,
    report: Annotated[bool, typer.Option("--report", help="Write report.md with the table and all charts.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Draw charts of finished runs: PNG, SVG and the CSV behind each.

    Prints the paths of the pictures.
    """
    from loramux_analysis.load import load
    from loramux_analysis.plots import draw_charts
    from loramux_analysis.report import write_report
    from loramux_traces.errors import UsageError, printable

    if report and kind:
        raise UsageError("--report draws every chart; leave out --kind")

    def tell(line: str) -> None:
        if not quiet:
            typer.echo(printable(line), err=True)

    results = load(runs)
    home = runs[0] if len(runs) == 1 else Path()
    if report:
        written = write_report(results, out or home, baseline=baseline, tell=tell)
    else:
        written = draw_charts(results, out or home / "plots", kind or (), baseline=baseline, tell=tell)
    for path in written:
        if path.suffix in (".png", ".json", ".md"):
            typer.echo(str(path))


def compare_command(
    runs: _Runs,
    baseline: _Baseline = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for comparison.csv, comparison.md and comparison.json.")
    ] = None,
) -> None:
    """Put policies side by side: means, 95% intervals, paired changes.

    Simulated runs are put against real ones where both are there.
    """
    from loramux_analysis.charts.agreement import pairs
    from loramux_analysis.compare import compare_results
    from loramux_analysis.load import load
    from loramux_analysis.real import compare_real
    from loramux_cli.compare_view import show_comparison
    from loramux_traces.filesafe import json_text

    results = load(runs)
    comparison = compare_results(results, baseline)
    real = [(name, compare_real(simulated, measured)) for name, simulated, measured in pairs(results)]
    text = json_text(_as_object(comparison, real), indent=2)
    if out is not None:
        _write(out, comparison, real, text)
    if as_json:
        typer.echo(text)
        return
    show_comparison(results, comparison, real)


def _as_object(comparison: Comparison, real: list[tuple[str, RealComparison]]) -> dict[str, object]:
    """Return the object that `compare --json` prints."""
    from dataclasses import asdict

    return {**comparison.to_dict(), "real": [{"policy": name, **asdict(found)} for name, found in real]}


def _write(out: Path, comparison: Comparison, real: list[tuple[str, RealComparison]], text: str) -> None:
    """Write the comparison as CSV (tidy), Markdown (to read) and JSON."""
    from loramux_analysis.plots import make_folder
    from loramux_analysis.report import real_table
    from loramux_traces.filesafe import write_csv, write_text

    make_folder(out)
    write_csv(out / "comparison.csv", comparison.table)
    markdown = [comparison.to_markdown(), *(["", *real_table(real)] if real else [])]
    write_text(out / "comparison.md", "\n".join(markdown) + "\n")
    write_text(out / "comparison.json", text + "\n")

"""Write a short report in Markdown of a set of results.

It has the table, what holds, and the charts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from loramux_analysis.charts.agreement import pairs
from loramux_analysis.compare import compare_results
from loramux_analysis.load import Results
from loramux_analysis.metrics import littles_law
from loramux_analysis.plots import draw_charts, make_folder
from loramux_analysis.real import RealComparison, compare_real
from loramux_traces.filesafe import write_text
from loramux_traces.runfolder import PLOTS, REPORT

_SHOWN: Final = (
    "turnaround_mean_s", "turnaround_p99_s", "waiting_mean_s", "makespan_s", "effective_tokens_per_s",
    "padding_fraction", "fairness_p95", "completed",
)  # fmt: skip
#: Columns of `real_cells`.
REAL_COLUMNS: Final = (
    "policy", "jobs", "mean error", "per-job p50", "per-job p90", "MAPE", "KS", "tau", "makespan error",
)  # fmt: skip


def write_report(
    results: Results, folder: Path, *, baseline: str | None = None, tell: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Write report.md and its charts (in plots/) and return all files, the report first.

    Raises InvalidInputError for a baseline that is not there, StateError when the folder cannot be
    written.
    """
    make_folder(folder)
    comparison = compare_results(results, baseline)
    files = draw_charts(results, folder / PLOTS, baseline=baseline, tell=tell)
    lines = ["# Results", "", f"{results.about()}.", "", "## Policies", "", comparison.to_markdown(_SHOWN), ""]
    twins = pairs(results)
    if twins:
        lines += [
            "## Simulated against real",
            "",
            *real_table([(name, compare_real(a, b)) for name, a, b in twins]),
            "",
        ]
    checks = [(label, check) for label, run in results.one_per_policy.items() for check in littles_law(run)]
    if checks:
        worst = max(check.gap for _, check in checks)
        lines += ["## Little's law", ""]
        lines += [
            f"Counts integrated over time and times summed over jobs differ by at most {worst:.2g} (relative).",
            "",
        ]
    lines += ["## Charts", ""]
    for picture in (path for path in files if path.suffix == ".png"):
        lines += [f"![{picture.stem}]({PLOTS}/{picture.name})", ""]
    write_text(folder / REPORT, "\n".join(lines))
    return [folder / REPORT, *files]


def real_table(rows: list[tuple[str, RealComparison]]) -> list[str]:
    """Return simulated against real, one policy a line, as Markdown."""
    cells = [REAL_COLUMNS, ("---",) * len(REAL_COLUMNS), *(real_cells(name, found) for name, found in rows)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]


def real_cells(name: str, found: RealComparison) -> tuple[str, ...]:
    """Return one policy's line, as text under REAL_COLUMNS."""
    errors = (_percent(v) for v in (found.mean_error, found.error_p50, found.error_p90, found.mape))
    return (name, str(found.jobs), *errors, _plain(found.ks), _plain(found.tau), _percent(found.makespan_error))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _plain(value: float | None) -> str:
    """Return a number from 0 to 1 with three digits."""
    return "-" if value is None else f"{value:.3f}"

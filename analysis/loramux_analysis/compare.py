"""Compare policies side by side.

The comparison has means with 95% intervals, and paired differences against a baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from loramux_analysis.intervals import Interval, change_over_jobs, change_over_seeds, over_jobs, over_seeds
from loramux_analysis.load import Results, load, pair_of
from loramux_analysis.metrics import FIGURES, Figure, completed
from loramux_traces.arrays import Floats
from loramux_traces.errors import InvalidInputError, Problem
from loramux_traces.filesafe import plain
from loramux_traces.results import SCHEMA_VERSION
from loramux_traces.runfolder import Run

#: Columns of `Comparison.table`.
COLUMNS: Final = (
    "load", "policy", "metric", "mean", "low", "high", "n", "over",
    "diff", "diff_low", "diff_high", "change", "change_low", "change_high", "pairs", "diff_over",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A Comparison is a tidy table with one row per (load, policy, metric).

    A row has a 95% interval and the paired difference against the baseline. `over` and `diff_over`
    say what an interval resamples: `seeds`, `jobs` (one seed only), or empty (no interval). `diff`
    is policy minus baseline in the figure's unit, averaged over `pairs` that had the same jobs;
    `change` is the ratio of the two means minus 1.
    """

    table: pd.DataFrame
    baseline: str
    about: str

    def wide(self, columns: Sequence[str] = (), *, brief: bool = False) -> pd.DataFrame:
        """Return one row per policy (and load) and one column per metric.

        The cells are text with intervals, for a person to read. `brief` uses short column names,
        for a terminal.
        """
        shown = [f for f in FIGURES if (f.column in columns if columns else f.column in set(self.table["metric"]))]
        keys = ["load", "policy"] if self.table["load"].notna().any() else ["policy"]
        rows = []
        for key, part in self.table.groupby(keys, sort=False, dropna=False):
            by_metric = part.set_index("metric")
            row: dict[str, str] = dict(zip(keys, (str(k) for k in key), strict=True))
            for f in shown:
                if f.column in by_metric.index:
                    name = f.short or f"{f.label} ({unit_of(f)})" if brief else f"{f.label} ({unit_of(f)})"
                    row[name] = _cell(f, pd.Series(by_metric.loc[f.column]))
            rows.append(row)
        return pd.DataFrame(rows).fillna("")

    def to_markdown(self, columns: Sequence[str] = ()) -> str:
        """Return the wide table in Markdown.

        A line below it says where the figures come from.
        """
        wide = self.wide(columns)
        lines = ["| " + " | ".join(wide.columns) + " |", "|" + "---|" * len(wide.columns)]
        lines += ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in wide.itertuples(index=False)]
        return "\n".join([*lines, "", self.legend()])

    def legend(self) -> str:
        """Say what the intervals and differences in the table are."""
        over = sorted({str(o) for o in self.table["over"] if o})
        what = f"± half of the 95% bootstrap interval over {' or '.join(over)}" if over else "one seed: no intervals"
        jobs_only = " (jobs of one run: seeds would say more)" if over == ["jobs"] else ""
        return f"{what}{jobs_only}; in brackets the paired change against {self.baseline}. {self.about}."

    def to_dict(self) -> dict[str, Any]:
        """Return the table as the object of `compare --json`; never NaN."""
        rows = self.table.to_dict(orient="records")
        body = {"schema_version": SCHEMA_VERSION, "baseline": self.baseline, "about": self.about, "rows": rows}
        value: dict[str, Any] = plain(body)
        return value


def compare(paths: Sequence[Path], baseline: str | None = None) -> Comparison:
    """Compare the policies found at `paths` (see `load.load`).

    `baseline` is a label; without one, `choose_baseline` says which is taken. Raises
    InvalidInputError when nothing is found or the baseline is not among the policies.
    """
    return compare_results(load(paths), baseline)


def compare_results(results: Results, baseline: str | None = None) -> Comparison:
    """Do the same as `compare` with results that were already read."""
    base = choose_baseline(results, baseline)
    rows: list[dict[str, Any]] = []
    loads: list[float | None] = [*results.loads] or [None]
    for load_value in loads:
        table = results.table if load_value is None else results.at_load(load_value)
        for policy in results.policies:
            for f in FIGURES:
                if f.column in table.columns and policy in set(table["policy"]):
                    against = None if policy == base else paired(results, table, policy, base, f)
                    rows.append(_flat(load_value, policy, f, interval(results, table, policy, f), against))
    return Comparison(pd.DataFrame(rows, columns=list(COLUMNS)), base, results.about())


def choose_baseline(results: Results, wanted: str | None = None) -> str:
    """Return the label of the baseline.

    It is the one asked for, else the first of `exclusive`, `sequential` and `fifo` that is there,
    else the slowest policy. Raises InvalidInputError when the one asked for is not there.
    """
    if wanted is None:
        known = [name for name in ("exclusive", "sequential", "fifo") if name in results.policies]
        return (known or results.policies[-1:])[0]
    if wanted not in results.policies:
        allowed = f"is not among the policies: {', '.join(results.policies)}"
        raise InvalidInputError([Problem(file="--baseline", line=0, column="", value=wanted, allowed=allowed)])
    return wanted


def interval(results: Results, table: pd.DataFrame, policy: str, f: Figure) -> Interval:
    """Return a policy's figure with its interval.

    The interval is over seeds, or over the jobs of its one run when the figure is a mean over jobs.
    """
    rows = table[table["policy"] == policy]
    values = rows[f.column].to_numpy(dtype=np.float64)
    if len(rows) == 1 and f.job_column:
        runs = _runs_of(results, policy, str(rows["pair"].iloc[0]))
        if len(runs) == 1:
            return over_jobs(_job_values(runs[0], f))
    return over_seeds(values)


def paired(results: Results, table: pd.DataFrame, policy: str, base: str, f: Figure) -> tuple[Interval, Interval]:
    """Return the difference and the relative change of a policy against the baseline.

    Both are over pairs that had the same jobs (common random numbers). With one pair only, and a
    figure that is a mean over jobs, both are taken job by job.
    """
    sides = [table[table["policy"] == who].groupby("pair")[f.column].mean() for who in (policy, base)]
    both = pd.concat(sides, axis=1, keys=["policy", "base"]).dropna()
    if len(both) == 1 and f.job_column:
        runs = [_runs_of(results, who, str(both.index[0])) for who in (policy, base)]
        if all(len(found) == 1 for found in runs):
            a, b = (completed(found[0].jobs).set_index("job_id") for found in runs)
            ids = [job_id for job_id in _in_order(a) if job_id in b.index]
            x, y = (side.loc[ids, f.job_column].to_numpy(dtype=np.float64) for side in (a, b))
            return over_jobs(x - y), change_over_jobs(x, y)
    x, y = (both[side].to_numpy(dtype=np.float64) for side in ("policy", "base"))
    return over_seeds(x - y), change_over_seeds(x, y)


def _flat(
    load_value: float | None, policy: str, f: Figure, mean: Interval, against: tuple[Interval, Interval] | None
) -> dict[str, Any]:
    """Return one row of the tidy table; the baseline itself has no difference."""
    row: dict[str, Any] = {"load": load_value, "policy": policy, "metric": f.column, **asdict(mean)}
    row |= {"pairs": 0, "diff_over": ""}
    if against is not None:
        diff, change = against
        row |= {
            "diff": diff.mean,
            "diff_low": diff.low,
            "diff_high": diff.high,
            "pairs": diff.n,
            "diff_over": diff.over,
        }
        row |= {"change": change.mean, "change_low": change.low, "change_high": change.high}
    return row


def _runs_of(results: Results, policy: str, pair: str) -> list[Run]:
    """Return the runs with their jobs of one policy and pair."""
    pairs = zip(results.runs, results.labels, strict=True)
    return [run for run, label in pairs if label == policy and pair_of(run.manifest) == pair]


def _in_order(jobs: pd.DataFrame) -> list[str]:
    """Return the job ids in order of submission."""
    return [str(job_id) for job_id in jobs.sort_values("submission_time", kind="stable").index]


def _job_values(run: Run, f: Figure) -> Floats:
    """Return a per-job column of the completed jobs, in order of submission."""
    jobs = completed(run.jobs).sort_values(["submission_time", "job_id"], kind="stable")
    return jobs[f.job_column].to_numpy(dtype=np.float64)


def unit_of(f: Figure) -> str:
    """Return the unit in which a table shows a figure."""
    return {"bytes": "GiB", "of tokens": "%", "of time": "%"}.get(f.unit, f.unit)


def shown(f: Figure, value: float) -> float:
    """Return a value in the unit of `unit_of`."""
    return value / {"bytes": 2**30, "of tokens": 0.01, "of time": 0.01}.get(f.unit, 1.0)


def number(value: float) -> str:
    """Return a number with three or four telling digits and thousands marked."""
    if not np.isfinite(value):
        return "-"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _cell(f: Figure, row: pd.Series) -> str:
    """Return `1,234 ± 56 (-12%)`: mean, half of the interval, paired difference."""
    text = number(shown(f, float(row["mean"])))
    low, high = (shown(f, float(row[side])) for side in ("low", "high"))
    if np.isfinite(low) and np.isfinite(high) and high - low > 1e-9 * abs(high):
        half = (high - low) / 2
        text += f" ± {number(half)}" if half >= 1e-3 else " ± <0.001"
    share = row["change"]
    return text if share is None or not np.isfinite(share) else f"{text} ({100 * share:+.1f}%)"


def _escape(cell: object) -> str:
    """Return a table cell that cannot break out of its column."""
    return str(cell).replace("|", "\\|")

"""Compare policies side by side.

The comparison has means with 95% intervals, and paired differences against a baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from loramux_analysis.intervals import (
    Interval,
    change_of_batches,
    change_over_jobs,
    change_over_seeds,
    of_batches,
    over_jobs,
    over_seeds,
)
from loramux_analysis.load import Results, load, pair_of, ranked
from loramux_analysis.metrics import FIGURES, Figure, completed
from loramux_traces.arrays import Floats
from loramux_traces.batches import BATCHED, batch_column, counted, read_batches
from loramux_traces.errors import InvalidInputError, Problem
from loramux_traces.filesafe import plain
from loramux_traces.overload import overload_note
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

    Rows are in order of load, then of the mean turnaround at that load. A row has a 95% interval
    and the paired difference against the baseline. `over` and `diff_over` say what an interval is
    over: `seeds` (each drew its own jobs), `jobs` (of one trace, in batches), or empty (no
    interval); `n` and `pairs` are how many there are of them. `diff` is policy minus baseline in
    the figure's unit, on the same jobs; `change` is the ratio of the two means minus 1.
    """

    table: pd.DataFrame
    baseline: str
    about: str
    notes: tuple[str, ...] = ()
    """What a reader must know: overload, policies that failed, jobs that fit nowhere."""

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
        return "\n".join([*lines, "", self.legend(), *(f"\n{note}" for note in self.notes)])

    def legend(self) -> str:
        """Say what the intervals and differences in the table are."""
        kinds = {str(o) for o in self.table["over"] if o}
        parts = []
        if "seeds" in kinds:
            parts.append("over seeds, which drew their own jobs (bootstrap)")
        if "jobs" in kinds:
            parts.append("over jobs of one run or trace (batch means; seeds that draw other jobs would say more)")
        what = f"Low and high: 95% interval {'; '.join(parts)}" if parts else "One seed and few jobs: no intervals"
        where = "on the same jobs (-: it had none of them)"
        return f"{what}. change: the paired change against {self.baseline}, {where}. {self.about}."

    def to_dict(self) -> dict[str, Any]:
        """Return the table as the object of `compare --json`; never NaN."""
        rows = self.table.to_dict(orient="records")
        body = {
            "schema_version": SCHEMA_VERSION,
            "baseline": self.baseline,
            "about": self.about,
            "legend": self.legend(),
            "notes": list(self.notes),
            "rows": rows,
        }
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
    for load_value in results.groups:
        table = results.at_load(load_value)
        for policy in ranked(table):
            for f in FIGURES:
                if f.column in table.columns:
                    against = None if policy == base else paired(results, table, policy, base, f)
                    rows.append(_flat(load_value, policy, f, interval(results, table, policy, f), against))
    notes = (*_redrawn(results), *_overload(results), *_left_out(results), *results.failed)
    return Comparison(pd.DataFrame(rows, columns=list(COLUMNS)), base, results.about(), notes)


def _redrawn(results: Results) -> list[str]:
    """Say what seeds redrew where they had one and the same trace."""
    groups = results.table.groupby(["policy", results.table["load"].fillna(-1.0)], sort=False)
    same = [rows for _, rows in groups if len(rows) > 1 and _one_trace(rows)]
    if not same:
        return []
    parts = dict.fromkeys(part for rows in same for text in _texts(rows, "seed_redraws") for part in text.split("; "))
    what = ", ".join(part for part in parts if part) or "nothing"
    return [f"Seeds of one trace redrew {what}; jobs and arrivals stayed, so intervals are over jobs, not over seeds."]


def _overload(results: Results) -> list[str]:
    """Say at which loads the jobs bring more than the devices can do."""
    known = [results.table[name] for name in ("offered_load", "load") if name in results.table.columns]
    loads = pd.to_numeric(known[0].fillna(known[-1])).dropna() if known else pd.Series(dtype=np.float64)
    note = overload_note(float(value) for value in loads)
    return [note] if note else []


def _left_out(results: Results) -> list[str]:
    """Say how many jobs did not complete under each policy: no figure but the counts is of them."""
    lines = []
    for policy in results.policies:
        rows = results.table[results.table["policy"] == policy]
        counts = {
            word: int(pd.to_numeric(rows[word]).fillna(0).sum())
            for word in ("unschedulable", "failed", "rejected")
            if word in rows.columns
        }
        said = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
        if said:
            names = sorted({name for text in _texts(rows, "unfit_jobs") for name in text.split()})
            which = f" (no device fits {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
            runs = f" in {len(rows)} runs" if len(rows) > 1 else ""
            lines.append(f"{policy}: {said}{runs}{which}; means are of the jobs that completed")
    return lines


def _texts(rows: pd.DataFrame, column: str) -> list[str]:
    return [str(text) for text in rows[column].dropna()] if column in rows.columns else []


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

    The interval is over seeds where each drew jobs of its own. Seeds of one and the same trace
    redraw little or nothing, so that their spread would pass for certainty: there, and with one
    seed, it is over the jobs, where the figure is a mean over jobs, and else there is none.
    """
    rows = table[table["policy"] == policy]
    values = rows[f.column].to_numpy(dtype=np.float64)
    if not _one_trace(rows):
        return over_seeds(values)
    mean = float(np.nanmean(values)) if np.isfinite(values).any() else np.nan
    if f.job_column:
        runs = [run for pair in rows["pair"] for run in _runs_of(results, policy, str(pair))]
        if len(runs) == len(rows):
            found = over_jobs(_mean_of([_job_values(run, f) for run in runs]).to_numpy())
        else:
            found = of_batches(_batches(rows, f), mean, int(rows["completed"].mean()) if "completed" in rows else 0)
        if found.known:
            return replace(found, mean=mean, low=max(0.0, found.low))
        return replace(found, mean=mean)
    return Interval(mean, np.nan, np.nan, int(np.isfinite(values).sum()), "")


def _one_trace(rows: pd.DataFrame) -> bool:
    """Say whether the rows are of one run, or of several draws over one and the same trace."""
    if len(rows) <= 1:
        return True
    traces = rows["trace"].fillna("") if "trace" in rows.columns else pd.Series("", index=rows.index)
    simulated = (rows["kind"] != "real").all()
    return bool(simulated and (traces != "").all() and traces.nunique() == 1)


def _batches(rows: pd.DataFrame, f: Figure) -> Floats:
    """Return the batch means that a sweep kept, averaged over seeds; none where it kept none."""
    found = [read_batches(text) for text in _texts(rows, batch_column(BATCHED[f.job_column]))]
    none: Floats = np.zeros(0)
    if not found or len(found) < len(rows) or not all(map(len, found)):
        return none
    means: Floats = np.mean(found, axis=0)
    return means


def paired(results: Results, table: pd.DataFrame, policy: str, base: str, f: Figure) -> tuple[Interval, Interval]:
    """Return the difference and the relative change of a policy against the baseline.

    Both are over pairs that had the same jobs (common random numbers), and of what `interval` is
    over: of seeds, or of the jobs of one trace.
    """
    sides = [table[table["policy"] == who].groupby("pair")[f.column].mean() for who in (policy, base)]
    both = pd.concat(sides, axis=1, keys=["policy", "base"]).dropna()
    x, y = (both[side].to_numpy(dtype=np.float64) for side in ("policy", "base"))
    rows = [table[(table["policy"] == who) & table["pair"].isin(both.index)] for who in (policy, base)]
    if not both.empty and all(map(_one_trace, rows)):
        if f.job_column:
            return _paired_jobs(results, rows, (policy, base), f, (x, y))
        if len(both) > 1:  # draws over one trace, and no mean over jobs: no interval
            bare = Interval(float((x - y).mean()), np.nan, np.nan, len(both), "")
            return bare, replace(bare, mean=float(x.sum() / y.sum() - 1) if y.sum() else np.nan)
    return over_seeds(x - y), change_over_seeds(x, y)


def _paired_jobs(
    results: Results, rows: list[pd.DataFrame], who: tuple[str, str], f: Figure, means: tuple[Floats, Floats]
) -> tuple[Interval, Interval]:
    """Return difference and change over the jobs that both sides completed."""
    runs = [
        [run for pair in part["pair"] for run in _runs_of(results, name, str(pair))]
        for part, name in zip(rows, who, strict=True)
    ]
    if all(len(found) == len(part) for found, part in zip(runs, rows, strict=True)):
        sides = [_mean_of([_job_values(run, f) for run in found]) for found in runs]
        both = pd.concat(sides, axis=1, keys=["x", "y"], join="inner").dropna()
        x, y = (both[side].to_numpy(dtype=np.float64) for side in ("x", "y"))
        change = change_over_jobs(x, y)
        return _in_units(change, over_jobs(x - y), float(y.mean()) if len(y) else np.nan), change
    a, b = (_batches(part, f) for part in rows)
    x, y = means
    n = int(min(part["completed"].mean() if "completed" in part else 0 for part in rows))
    gap = a - b if len(a) == len(b) else a[:0]
    change = change_of_batches(a, b, (float(x.sum()), float(y.sum())), n or len(x))
    return _in_units(change, of_batches(gap, float((x - y).mean()), n or len(x)), float(y.mean())), change


def _in_units(change: Interval, difference: Interval, base_mean: float) -> Interval:
    """Return the difference with the interval of the change, in the unit of the figure.

    Two intervals of the same thing, one over differences and one over ratios, could disagree about
    whether there is a difference at all. Where there is no change (the baseline is 0), the
    difference keeps its own.
    """
    if not (change.known and difference.known):
        return difference
    return replace(difference, low=change.low * base_mean, high=change.high * base_mean)


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


def _job_values(run: Run, f: Figure) -> pd.Series:
    """Return a figure of the completed jobs by job id, in order of submission.

    Jobs that were to warm the run up are left out, as they are of the run's summary.
    """
    options = run.manifest.get("options")
    warmup = float(options.get("warmup") or 0.0) if isinstance(options, dict) else 0.0
    jobs = completed(counted(run.jobs, warmup))
    return jobs.set_index("job_id")[f.job_column].astype(np.float64)


def _mean_of(draws: list[pd.Series]) -> pd.Series:
    """Return each job's mean over the draws that completed it, in order of submission."""
    if len(draws) == 1:
        return draws[0]
    together = pd.concat(draws, axis=1)
    return together.mean(axis=1)


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
    """Return `1,234 [1,180 to 1,290] (-12% [-15% to -9%])`: mean, interval, paired change."""
    text = number(shown(f, float(row["mean"])))
    if np.isfinite(row["low"]) and np.isfinite(row["high"]):
        text += f" [{number(shown(f, float(row['low'])))} to {number(shown(f, float(row['high'])))}]"
    share = row["change"]
    if share is None or not np.isfinite(share):
        return text
    change = percent(float(share))
    if np.isfinite(row["change_low"]) and np.isfinite(row["change_high"]):
        change += f" [{percent(float(row['change_low']))} to {percent(float(row['change_high']))}]"
    return f"{text} ({change})"


def percent(share: float) -> str:
    """Return a change as text: `-12.3%`; `-` where there is none."""
    if not np.isfinite(share):
        return "-"
    return f"{100 * share:+.1f}%".replace("-0.0%", "+0.0%") if abs(share) < 10 else f"{100 * share:+,.0f}%"


def _escape(cell: object) -> str:
    """Return a table cell that cannot break out of its column."""
    return str(cell).replace("|", "\\|")

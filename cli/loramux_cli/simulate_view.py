"""This module says what simulated runs have found: the JSON report, and the table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from loramux_cli.words import duration

if TYPE_CHECKING:
    from loramux_simulator import RunResult
    from loramux_traces.job import Trace

COLUMNS = (
    "done",
    "turnaround\nmean",
    "\np95",
    "waiting\nmean",
    "make-\nspan",
    "tokens\n/s",
    "GPU\nbusy",
    "memory\npeak",
)


class PolicyFailure(TypedDict):
    """Says which run a policy's fault ended, and what the fault was."""

    policy: str
    seed: int
    error: str


def by_text(errors: Sequence[PolicyFailure]) -> dict[str, list[PolicyFailure]]:
    """Return the failures by what they say, in order."""
    found: dict[str, list[PolicyFailure]] = {}
    for row in errors:
        found.setdefault(row["error"], []).append(row)
    return found


def simulation_report(
    trace: dict[str, Any],
    results: Sequence[tuple[str, RunResult]],
    errors: Sequence[PolicyFailure],
    load: float | None,
    seeds: int,
) -> dict[str, Any]:
    """Return the object of `simulate --json`.

    `intervals`: each policy's mean turnaround and waiting over the jobs of the trace. Seeds redraw
    little of a trace that was read, so that an interval over them would pass for certainty.
    """
    from loramux_simulator.seeds import SAME_JOBS

    redrawn = {name: list(result.seed_redraws) for name, result in results}
    return {
        "schema_version": 1,
        "trace": trace,
        "offered_load": load,
        "seeds": {"n": seeds, "redraws": redrawn, "keeps": SAME_JOBS},
        "intervals": _intervals(results),
        "runs": [result.entry() for _, result in results],
        "policy_errors": list(errors),
    }


def _intervals(results: Sequence[tuple[str, RunResult]]) -> list[dict[str, Any]]:
    """Return the interval over jobs of each policy's means, its seeds averaged job by job."""
    import numpy as np
    import pandas as pd

    from loramux_analysis.intervals import over_jobs
    from loramux_traces.batches import counted
    from loramux_traces.results import COMPLETED

    rows = []
    for name in dict.fromkeys(name for name, _ in results):
        mine = [result for other, result in results if other == name]
        for column, figure in (("turnaround_time", "turnaround_s"), ("waiting_time", "waiting_s")):
            draws = []
            for result in mine:
                jobs = counted(result.jobs, float(result.options["warmup"]))
                draws.append(jobs[jobs["final_state"] == COMPLETED].set_index("job_id")[column])
            found = over_jobs(pd.concat(draws, axis=1).mean(axis=1).to_numpy(dtype=np.float64))
            means = [mean for result in mine if (mean := result.summary[figure]["mean"]) is not None]
            rows.append(
                {
                    "policy": name,
                    "metric": figure.replace("_s", "_mean_s"),
                    "mean": float(np.mean(means)) if means else None,
                    "low": max(0.0, found.low) if found.known else None,
                    "high": found.high if found.known else None,
                    "n": found.n,
                    "over": found.over,
                }
            )
    return rows


def show_simulation(trace: Trace, results: Sequence[tuple[str, RunResult]], report: dict[str, Any]) -> None:
    """Print a row a run, each policy's interval where there are several seeds, and the source."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from loramux_traces.errors import printable
    from loramux_traces.overload import overload_note

    console = Console()
    console.width = max(console.width, 80)  # in a narrower terminal lines wrap, but no name is lost
    several = report["seeds"]["n"] > 1
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("policy", overflow="fold")
    if several:
        table.add_column("seed", justify="right")
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for name, result in results:
        s = result.summary
        cells = [
            f"{s['completed']}/{s['jobs']}",
            duration(s["turnaround_s"]["mean"]),
            duration(s["turnaround_s"]["p95"]),
            duration(s["waiting_s"]["mean"]),
            duration(s["makespan_s"]),
            f"{s['effective_tokens_per_s']:,.0f}",
            f"{s['gpu_busy_fraction']:.0%}",
            f"{s['memory_peak_bytes'] / 2**30:.1f} GiB",
        ]
        table.add_row(Text(name), *([str(result.seed)] if several else []), *cells)
    for row in report["policy_errors"]:
        head = [str(row["seed"])] if several else []
        table.add_row(Text(row["policy"]), *head, "failed", *("-" for _ in COLUMNS[1:]))
    console.print(table)
    if several:
        _show_intervals(console, report)
    if note := overload_note([] if report["offered_load"] is None else [report["offered_load"]]):
        console.print(Text(note))
    origin = results[0][1].origin
    facts = f"{trace.name}: {len(trace)} job{'s' if len(trace) > 1 else ''}. Simulated; costs {origin}"
    console.print(Text(printable(facts + (f". {trace.provenance}" if trace.provenance else ""))), style="dim")
    console.print("What the columns mean: loramux simulate -h", style="dim")


def _show_intervals(console: Any, report: dict[str, Any]) -> None:
    """Print what a seed redrew, and the interval over jobs."""
    from rich.text import Text

    from loramux_simulator.seeds import redraw_sentence

    for row in report["intervals"]:
        if row["metric"] == "turnaround_mean_s":
            span = f"95% interval {duration(row['low'])} to {duration(row['high'])}" if row["over"] else "no interval"
            said = f"{span} over the {row['n']:,} jobs" if row["over"] else f"{span}: {row['n']} jobs are too few"
            console.print(Text(f"{row['policy']}: mean turnaround {duration(row['mean'])}, {said}"))
    redraws = report["seeds"]["redraws"]
    same = len({tuple(parts) for parts in redraws.values()}) <= 1
    for name, parts in list(redraws.items())[: 1 if same else None]:
        console.print(Text(f"{'' if same else f'{name}: '}{redraw_sentence(parts)}"))
    if any(row["over"] for row in report["intervals"]):
        console.print(Text("So intervals are over the jobs of the trace, in 5 batches, not over seeds."))

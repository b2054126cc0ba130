"""ASPEN's evaluation.

The order on mixed lengths comes out of the model, the tables add up, JSON has no NaN.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from loramux.evaluations.aspen import FILES, Bench, Workload, identical, mixed, modelled, policies
from loramux_analysis import aspen_evaluation as a
from loramux_analysis import aspen_published as theirs
from loramux_cli.main import app
from loramux_simulator import SimOptions, simulate
from loramux_traces.errors import UsageError

SCALED = Workload(scale=40.0)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


def hours(bench: Bench, workload: Workload, k: int, candidates: int, order: str | None = None) -> dict[str, float]:
    """Makespan by system; `order` overrides the row order."""
    return {
        system: bench.run(workload, policy, order or own).summary["makespan_s"] / 3600  # type: ignore[arg-type]
        for system, (policy, own) in policies(k, candidates).items()
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_order_on_mixed_lengths_comes_out(bench: Bench, seed: int) -> None:
    found = hours(bench, replace(SCALED, seed=seed), 4, 8)
    assert found[theirs.M3] < found[theirs.SEQUENTIAL] < found[theirs.M1]
    assert found[theirs.M1] / found[theirs.SEQUENTIAL] == pytest.approx(36.82 / 27.73, rel=0.08)
    assert found[theirs.M3] / found[theirs.SEQUENTIAL] == pytest.approx(22.97 / 27.73, rel=0.12)


def test_fusing_shuffled_rows_never_pads_less_than_sequential(bench: Bench) -> None:
    """Why the published M3 must have sorted.

    A fused micro-batch is padded at least to its own longest row.
    """
    alone = bench.run(SCALED, "exclusive", "shuffled").summary["padding_fraction"]
    for policy in ("aspen-minpad:k=4,residents=8", "aspen-fifo:k=4,residents=4", "aspen:k=4,residents=8"):
        assert bench.run(SCALED, policy, "shuffled").summary["padding_fraction"] > alone
    published = {(p.system, p.metric): p.value for p in theirs.PUBLISHED if p.experiment == theirs.MIXED}
    tokens = {
        s: published[s, "latency_h"] * published[s, "tokens_per_s"] for s in (theirs.SEQUENTIAL, theirs.M1, theirs.M3)
    }
    assert tokens[theirs.M3] < tokens[theirs.SEQUENTIAL] < tokens[theirs.M1]


def test_sorted_rows_are_the_same_rows(bench: Bench) -> None:
    """Sorting changes who shares a micro-batch, not how many tokens there are; and it pads less."""
    trace = SCALED.trace()
    tokens = {}
    for order in ("shuffled", "sorted"):
        result = bench.simulate(trace, "exclusive", order, "padded", 0)
        tokens[order] = result.summary["effective_tokens_per_s"] * result.summary["makespan_s"]
        if order == "sorted":
            assert result.summary["padding_fraction"] < 0.1
    assert tokens["sorted"] == pytest.approx(tokens["shuffled"], rel=0.02)
    again = bench.simulate(trace, "exclusive", "sorted", "padded", 0)
    assert again.summary["effective_tokens_per_s"] == result.summary["effective_tokens_per_s"]


def test_sorted_rows_need_step_fidelity() -> None:
    with pytest.raises(UsageError, match="step"):
        SimOptions(row_order="sorted")
    with pytest.raises(UsageError, match="row-order"):
        simulate(SCALED.trace(), "fifo", fidelity="step", row_order="longest")


def summary(makespan_h: float, real: float, pads: float) -> dict[str, Any]:
    return {
        "makespan_s": makespan_h * 3600, "turnaround_s": {"mean": 7200.0}, "waiting_s": {"mean": None},
        "effective_tokens_per_s": real, "padding_fraction": pads, "memory_peak_bytes": 20e9,
    }  # fmt: skip


def row(table: pd.DataFrame, experiment: str, system: str, metric: str) -> Any:
    found = table[(table.experiment == experiment) & (table.system == system) & (table.metric == metric)]
    assert len(found) == 1
    return found.iloc[0]


def test_arithmetic_of_the_table() -> None:
    ours = [
        *a.figures_of(theirs.MIXED, theirs.SEQUENTIAL, summary(10.0, 300.0, 0.5)),
        *a.figures_of(theirs.MIXED, theirs.M1, summary(12.0, 250.0, 0.6)),
    ]
    table = a.compare(ours)
    assert list(table.columns) == list(a.TABLE_COLUMNS)
    fifo = row(table, theirs.MIXED, theirs.M1, "latency_h")
    assert fifo.published == 36.82 and fifo.mark == "V" and fifo.ours == pytest.approx(12.0)
    assert fifo.difference == pytest.approx(12.0 / 36.82 - 1)
    assert fifo.published_ratio == pytest.approx(36.82 / 27.73) and fifo.our_ratio == pytest.approx(1.2)
    assert fifo.ratio_difference == pytest.approx(1.2 / (36.82 / 27.73) - 1)
    assert row(table, theirs.MIXED, theirs.M1, "tokens_per_s").ours == pytest.approx(625.0)
    assert row(table, theirs.MIXED, theirs.M1, "memory_gb").ours == pytest.approx(20.0)
    quoted = row(table, theirs.MIXED, theirs.M2, "latency_h")
    assert quoted.kind == "not simulated" and math.isnan(quoted.ours)
    assert row(table, theirs.MIXED, theirs.M1, "turnaround_h").kind == "ours"
    assert table[(table.system == theirs.M1) & (table.metric == "waiting_h") & (table.experiment == theirs.MIXED)].empty
    assert not table.duplicated(["experiment", "system", "metric"]).any()


def test_claims_follow_from_the_published_figures() -> None:
    found = a.claims(a.compare(modelled())).set_index("claim")
    assert found.figures["GPU memory, 4 jobs"] == pytest.approx(-0.527, abs=0.001)
    assert found.figures["throughput"] == pytest.approx(0.174, abs=0.002)
    assert found.figures["turnaround"] == pytest.approx(-0.219, abs=0.001)
    assert found.figures["waiting (what the 24% is)"] == pytest.approx(-0.239, abs=0.001)
    assert found.figures["end-to-end latency"] == pytest.approx(-0.120, abs=0.001)
    assert found.ours["GPU memory, 4 jobs"] == pytest.approx(-0.53, abs=0.05)
    assert math.isnan(found.ours["throughput"])


def test_memory_by_batch_size_is_complete() -> None:
    table = a.compare(modelled())
    part = table[table.experiment == theirs.FURTHER]
    assert len(part) == 2 * len(theirs.FURTHER_JOB_GB) and part.ours.notna().all()
    assert np.abs(part.difference).max() < 0.25


def test_identical_jobs_give_the_fitted_rates(bench: Bench) -> None:
    table = a.compare(identical(bench, scale=10.0))
    for system in (theirs.SEQUENTIAL, theirs.PARALLEL, theirs.ASPEN):
        assert abs(row(table, theirs.IDENTICAL, system, "tokens_per_s").difference) < 0.03


def test_order_holds_reads_the_table(bench: Bench) -> None:
    figures, runs = mixed(bench, SCALED)
    assert a.order_holds(a.compare(figures))
    assert {run["system"] for run in runs} == {
        theirs.SEQUENTIAL,
        theirs.PARALLEL,
        theirs.M1,
        theirs.M1_SORTED,
        theirs.M3,
        theirs.M4,
        theirs.PACKED,
    }
    swapped = [f._replace(value=1e3) if (f.system, f.metric) == (theirs.M3, "latency_h") else f for f in figures]
    assert not a.order_holds(a.compare(swapped))


@pytest.mark.parametrize("fidelity", ["step", "rate"])
def test_command_writes_everything_and_json_has_no_nan(tmp_path: Path, fidelity: str) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(text)

    options = ["--out", str(tmp_path / "e"), "--scale", "400", "--fidelity", fidelity, "--json", "--quiet"]
    result = CliRunner().invoke(app, ["evaluate", "aspen", *options], catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads(result.stdout, parse_constant=refuse)
    assert report["schema_version"] == 1 and len(report["runs"]) == 7
    assert not any("wall" in key for run in report["runs"] for key in run)
    assert {path.name for path in (tmp_path / "e").iterdir()} == set(FILES)
    assert "nan" not in (tmp_path / "e" / "evaluation.md").read_text().lower()
    for path in (tmp_path / "e").glob("*.png"):
        assert path.stat().st_size < 300_000
    if fidelity == "step":
        again = CliRunner().invoke(app, ["evaluate", "aspen", *options, "--force"], catch_exceptions=False)
        assert again.exit_code == 0 and again.stdout == result.stdout

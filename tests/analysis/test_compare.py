"""Loading, labels, comparison and simulated-against-real."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from loramux_analysis.compare import COLUMNS, compare
from loramux_analysis.load import describe, load
from loramux_analysis.real import compare_real
from loramux_traces.errors import InvalidInputError
from loramux_traces.runfolder import MANIFEST, Run
from loramux_traces.tidy import write_results

MakeRun = Callable[..., Run]


def _row(table: pd.DataFrame, policy: str, metric: str) -> dict[str, Any]:
    found = table[(table["policy"] == policy) & (table["metric"] == metric)]
    assert len(found) == 1
    return dict(found.iloc[0])


def _edit(run: Run, **changes: Any) -> None:
    (run.path / MANIFEST).write_text(json.dumps({**run.manifest, **changes}))


def test_means_and_paired_differences(run_set: Path) -> None:
    found = compare([run_set])
    assert list(found.table.columns) == list(COLUMNS)
    assert found.baseline == "fifo"
    results = load([run_set])
    values = {p: part["turnaround_mean_s"].to_numpy() for p, part in results.table.groupby("policy")}
    row = _row(found.table, "sjf", "turnaround_mean_s")
    assert row["mean"] == pytest.approx(values["sjf"].mean())
    assert row["diff"] == pytest.approx((values["sjf"] - values["fifo"]).mean())
    assert row["change"] == pytest.approx(values["sjf"].mean() / values["fifo"].mean() - 1)
    assert (row["over"], row["diff_over"], row["pairs"]) == ("seeds", "seeds", 3)
    assert row["diff_high"] < 0  # shortest first is better on every seed
    assert row["diff_high"] - row["diff_low"] < row["high"] - row["low"]  # pairing pays
    base = _row(found.table, "fifo", "turnaround_mean_s")
    assert np.isnan(base["diff"])
    assert base["pairs"] == 0


def test_one_seed_falls_back_to_jobs(run_set: Path) -> None:
    found = compare([run_set / "fifo-s0", run_set / "sjf-s0"], baseline="sjf")
    row = _row(found.table, "fifo", "turnaround_mean_s")
    assert (row["over"], row["diff_over"], row["n"]) == ("jobs", "jobs", 297)
    assert row["low"] < row["mean"] < row["high"]
    assert _row(found.table, "fifo", "makespan_s")["over"] == ""
    assert "jobs of one run" in found.legend()


def test_texts(run_set: Path) -> None:
    found = compare([run_set])
    markdown = found.to_markdown()
    assert markdown.startswith("| policy | mean turnaround (s) |")
    assert "costs assumed; trace: toy.csv, modelled (Philly-like)" in markdown
    value = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert value["schema_version"] == 1
    assert {row["policy"] for row in value["rows"]} == {"fifo", "sjf"}
    assert all(isinstance(row["pairs"], int) for row in value["rows"])


def test_sweep_compares_at_every_load(tmp_path: Path, sweep_rows: pd.DataFrame) -> None:
    write_results(tmp_path / "results.csv", sweep_rows)
    found = compare([tmp_path])
    assert sorted(found.table["load"].unique()) == [0.5, 0.7, 0.9]
    assert len(found.wide()) == 6
    assert "costs unknown" in found.about  # no manifest in the sweep folder: said, not guessed
    with pytest.raises(InvalidInputError, match=r"exclusive.*fifo"):
        compare([tmp_path], baseline="exclusive")


def test_runs_inside_a_sweep_count_once(tmp_path: Path, make_run: MakeRun, sweep_rows: pd.DataFrame) -> None:
    write_results(tmp_path / "results.csv", sweep_rows)
    make_run(tmp_path / "runs" / "fifo-s0", "fifo", 0, jobs=30)
    results = load([tmp_path, tmp_path])
    assert len(results.table) == len(sweep_rows)
    assert len(results.runs) == 1


def test_labels_say_only_what_differs(tmp_path: Path, make_run: MakeRun) -> None:
    a, b = (make_run(tmp_path / name, "aspen", 0, jobs=20) for name in "ab")
    _edit(a, policy_params={"k": 8, "candidates": 60})
    _edit(b, policy_params={"k": 4, "candidates": 60}, fidelity="step")
    c = make_run(tmp_path / "c", "fifo", 0, jobs=20)
    _edit(c, policy_params={"skip": 3})
    assert sorted(load([tmp_path]).labels) == ["aspen:k=4 (step)", "aspen:k=8 (rate)", "fifo"]


def test_sweep_labels(tmp_path: Path, sweep_rows: pd.DataFrame) -> None:
    params = np.where(np.arange(len(sweep_rows)) % 2, "k=2", "k=1")
    write_results(
        tmp_path / "results.csv", sweep_rows.assign(params=np.where(sweep_rows["policy"] == "sjf", params, ""))
    )
    assert set(load([tmp_path]).policies) == {"fifo", "sjf:k=1", "sjf:k=2"}


def test_footer_says_the_worst_origin() -> None:
    trace = {"name": "/secret/place/a.csv", "provenance": "public"}
    assert describe([{"kind": "simulated", "origin": "fitted", "trace": trace}]) == (
        "simulated, costs fitted; trace: a.csv, public"
    )
    both = describe([{"origin": "measured", "trace": trace, "ideal": True}, {"origin": "assumed", "trace": trace}])
    assert both.startswith("simulated, costs assumed")
    assert "ideal (no overheads)" in both
    assert describe([{"kind": "real", "trace": trace}]).startswith("measured; trace")
    assert describe([]) == "simulated, costs unknown; trace: unknown"


def test_simulated_against_real(tmp_path: Path, make_run: MakeRun) -> None:
    simulated = make_run(tmp_path / "sim", "fifo", 0, load=0.5)
    same = compare_real(simulated, simulated)
    assert (same.mean_error, same.error_p90, same.ks, same.tau, same.jobs) == (0, 0, 0, 1, 297)
    real = make_run(tmp_path / "real", "fifo", 0, kind="real", load=0.5, slow=1.25)
    found = compare_real(simulated, real)
    assert found.mean_error is not None
    assert -0.30 < found.mean_error < -0.15  # 1/1.25 = -20%, and some queueing
    assert found.error_p50 is not None
    assert found.error_p90 is not None
    assert found.error_p50 < found.error_p90
    short = make_run(tmp_path / "short", "fifo", 0, jobs=30, load=0.5)
    assert compare_real(short, real).only_real == 267


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no run folder"):
        load([tmp_path])
    with pytest.raises(InvalidInputError, match="no finished run"):
        load([])


def test_a_run_in_which_nothing_completed(tmp_path: Path, make_run: MakeRun) -> None:
    from loramux_traces.results import RunStats, summarise
    from loramux_traces.runfolder import write_run

    run = make_run(tmp_path / "a", jobs=5)
    jobs = run.jobs.assign(final_state="UNSCHEDULABLE", starting_time=np.nan, finish_time=np.nan)
    summary = summarise(jobs, RunStats())
    write_run(run.path, manifest=run.manifest, jobs=jobs, events=None, summary=summary, timeline=None)
    found = compare([tmp_path])
    assert np.isnan(_row(found.table, "fifo", "turnaround_mean_s")["mean"])
    assert "NaN" not in json.dumps(found.to_dict())
    assert "| - |" in found.to_markdown()


def test_other_traces_do_not_pass_for_seeds(tmp_path: Path, make_run: MakeRun) -> None:
    """Draws of one generator are seeds of one row; two traces of other kinds are two rows."""
    made = "MODELLED. Made by: loramux trace generate --kind poisson --jobs 20 --seed {} --set rho={}"
    for name, seed, rho in (("a", 0, 0.8), ("b", 1, 0.8), ("c", 2, 0.9)):
        run = make_run(tmp_path / name / "fifo", "fifo", seed, jobs=20)
        _edit(run, trace={"sha256": name, "provenance": made.format(seed, rho)})
    assert set(load([tmp_path / "a", tmp_path / "b"]).table["policy"]) == {"fifo"}
    assert sorted(load([tmp_path]).table["policy"]) == ["fifo [a]", "fifo [b]", "fifo [c]"]
    _edit(run, trace={"sha256": "c", "provenance": "a log"})
    assert sorted(load([tmp_path / "a", tmp_path / "c"]).table["policy"]) == ["fifo [a]", "fifo [c]"]

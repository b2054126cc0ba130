"""Numbers that could mislead: intervals, overload, provenance, failed policies, 80 columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from .conftest import HEADER, Cli, write_trace

FAILING = """
from loramux_policies import Policy, register, start_in_order

@register("{name}")
class Failing(Policy):
    def place(self, view):
        plan = view.plan()
        for job in view.waiting(9):
            if {when}:
                plan.start(job.job_id, 0)
        return plan
"""
ROWS = tuple(f"j{i:02},{3 * i},smollm2-135m,lora,4,{100 + i},{200 + 10 * (i % 7)},0" for i in range(40))
HUGE = "huge,1,llama-2-13b,lora,1,100000,10,0"
LONG = "aspen:k=3,candidates=60"


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def forty(tmp_path: Path) -> Path:
    return write_trace(tmp_path / "forty.csv", ROWS)


@pytest.fixture
def failing(tmp_path: Path) -> Path:
    """A policy that puts every job on one device, until they do not fit."""
    file = tmp_path / "failing.py"
    file.write_text(FAILING.format(name="greedy-mine", when="True"))
    return file


def fits(text: str) -> bool:
    return max(len(line) for line in text.splitlines()) <= 80


# --- policies that fail
# ------------------------------------------------------------------------------------------------


def crowd(tmp_path: Path) -> Path:
    """Jobs that do not fit one device together."""
    header = f"{HEADER},mem_bytes"
    return write_trace(tmp_path / "crowd.csv", tuple(f"{row},{9 * 2**30}" for row in ROWS[:6]), header)


def test_the_other_policies_finish(cli: Cli, tmp_path: Path, failing: Path) -> None:
    out = tmp_path / "out"
    command = ("simulate", "--trace", crowd(tmp_path), "--policy-file", failing, "--devices", "1xl4", "--out", out)
    ran = cli(*command, "--policy", "fifo", "--policy", "greedy-mine", "--policy", "srtf", "--seeds", 2)
    assert ran.code == 2
    assert "greedy-mine" in ran.out
    assert ran.out.count("failed") == 2
    assert ran.err.count("policy greedy-mine at 6.000 s: j02 does not fit device 0") == 1
    assert "and so with 1 other seeds" in ran.err
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["fifo-s0", "fifo-s1", "srtf-s0", "srtf-s1"]
    report = json.loads((out / "summary.json").read_text())
    assert [(row["policy"], row["seed"]) for row in report["policy_errors"]] == [("greedy-mine", 0), ("greedy-mine", 1)]
    assert [run["policy"] for run in report["runs"]] == ["fifo", "fifo", "srtf", "srtf"]
    compared = cli("compare", out)
    assert compared.code == 0
    assert "greedy-mine failed: policy greedy-mine at 6.000 s" in " ".join(compared.out.split())
    notes = json.loads(cli("compare", out, "--json").out)["notes"]
    assert any("greedy-mine failed" in note for note in notes)
    plain = cli(*command[:-2], "--policy", "fifo", "--policy", "srtf", "--seeds", 2, "--json", "--quiet")
    kept = [{k: v for k, v in run.items() if "wall" not in k} for run in report["runs"]]
    again = [{k: v for k, v in run.items() if "wall" not in k} for run in json.loads(plain.out)["runs"]]
    assert kept == again


def test_a_sweep_keeps_the_rows_of_the_others_and_tries_again(cli: Cli, tmp_path: Path, failing: Path) -> None:
    out = tmp_path / "s"
    command = ("sweep", "--trace", crowd(tmp_path), "--policy-file", failing, "--devices", "1xl4", "--out", out,
               "--workers", 1, "--policy", "greedy-mine", "--policy", "fifo", "--seeds", 2)  # fmt: skip
    ran = cli(*command)
    assert ran.code == 2
    assert "failed" in ran.out
    assert fits(ran.out)
    rows = pd.read_csv(out / "results.csv")
    bad = rows[rows["policy"] == "greedy-mine"]
    assert bad["turnaround_mean_s"].isna().all()
    assert bad["policy_error"].str.contains("j02 does not fit device 0").all()
    assert rows[rows["policy"] == "fifo"]["policy_error"].isna().all()
    assert (rows[rows["policy"] == "fifo"]["completed"] == 6).all()
    compared = cli("compare", out)
    assert "greedy-mine failed in 2 of its runs" in " ".join(compared.out.split())
    assert cli("plot", out, "--kind", "bars", "--out", tmp_path / "p").code == 0
    failing.write_text(FAILING.format(name="greedy-mine", when="plan.fits(0, [job.job_id])"))
    from loramux_policies import registry

    registry._known.pop("greedy-mine", None)
    again = cli(*command, "--resume")
    assert again.code == 0, again.err  # the file has changed, but no row was by the old one
    assert (pd.read_csv(out / "results.csv")["completed"] == 6).all()


def test_a_policy_that_leaves_the_folder_leaves_the_results_where_they_belong(
    cli: Cli, forty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "roaming.py").write_text(
        "import os\nfrom loramux_policies import create\n\n\nclass Roaming(type(create('fifo'))):\n"
        "    def place(self, view):\n        os.chdir('/')\n        return super().place(view)\n"
    )
    monkeypatch.chdir(tmp_path)
    common = ("--trace", "forty.csv", "--policy-file", "roaming.py", "--policy", "Roaming", "--devices", "1xl4")
    assert cli("simulate", *common, "--out", "here").code == 0
    assert (tmp_path / "here" / "Roaming-s0" / "jobs.csv").exists()
    assert cli("sweep", *common, "--out", "swept", "--seeds", 2, "--workers", 1).code == 0
    assert len(pd.read_csv(tmp_path / "swept" / "results.csv")) == 2


# --- seeds and intervals
# ------------------------------------------------------------------------------------------------


def test_seeds_of_one_trace_have_an_interval_over_its_jobs(cli: Cli, forty: Path) -> None:
    command = ("simulate", "--trace", forty, "--policy", "fifo", "--policy", LONG, "--devices", "1xl4", "--seeds", 3)
    ran = cli(*command)
    text = " ".join(ran.out.split())
    assert fits(ran.out)
    assert "over the 40 jobs" in text
    assert "the jobs, their arrivals and their sizes stay the same" in text
    assert "roll-outs of fuse()" in text
    assert "not over seeds" in text
    report = json.loads(cli(*command, "--json").out)
    assert report["seeds"]["n"] == 3
    assert set(report["seeds"]["redraws"]) == {"fifo", LONG}
    rows = [row for row in report["intervals"] if row["metric"] == "turnaround_mean_s"]
    assert [(row["over"], row["n"]) for row in rows] == [("jobs", 40)] * 2
    assert all(row["low"] < row["mean"] < row["high"] for row in rows)
    one = cli("simulate", "--trace", forty, "--policy", "fifo", "--devices", "1xl4")
    assert "interval" not in one.out  # one seed: the table alone


def test_a_sweep_of_one_trace_and_compare_agree_on_the_interval(cli: Cli, forty: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    command = ("sweep", "--trace", forty, "--policy", "fifo", "--policy", "srtf", "--devices", "1xl4", "--seeds", 2,
               "--load", 0.8, "--workers", 1, "--out", out, "--json")  # fmt: skip
    report = json.loads(cli(*command).out)
    assert {row["interval_over"] for row in report["intervals"]} == {"jobs"}
    assert {row["n"] for row in report["intervals"]} == {40}
    rows = json.loads(cli("compare", out, "--json").out)["rows"]
    compared = {r["policy"]: r for r in rows if r["metric"] == "turnaround_mean_s"}
    for row in report["intervals"]:
        mine = compared[row["policy"]]
        assert mine["over"] == "jobs"
        for side in ("mean", "low", "high"):
            assert mine[side] == pytest.approx(row[f"turnaround_{side}_s"])
    assert compared["srtf"]["diff_over"] == "jobs"
    assert "Seeds of one trace redrew by how much memory" in " ".join(cli("compare", out).out.split())
    table = pd.read_csv(out / "results.csv")
    assert set(table["interval_over"]) == {"jobs"}
    assert table["seed_redraws"].str.contains("memory").all()
    # run folders hold the jobs themselves and come to the same
    runs = tmp_path / "runs"
    common = ("--trace", forty, "--policy", "fifo", "--policy", "srtf", "--devices", "1xl4", "--seeds", 2)
    assert cli("simulate", *common, "--out", runs).code == 0
    assert cli("sweep", *common, "--workers", 1, "--out", tmp_path / "s2").code == 0
    found: list[dict[tuple[str, str], Any]] = []
    for folder in (runs, tmp_path / "s2"):
        rows = json.loads(cli("compare", folder, "--json").out)["rows"]
        found.append({(r["policy"], r["metric"]): r for r in rows})
    for key in ((p, m) for p in ("fifo", "srtf") for m in ("turnaround_mean_s", "waiting_mean_s", "stretch_mean")):
        for name in ("mean", "low", "high", "diff", "diff_low", "diff_high", "change", "change_low"):
            mine, other = found[0][key][name], found[1][key][name]
            assert (mine is None) == (other is None), (key, name)
            assert mine is None or mine == pytest.approx(other, rel=1e-6, abs=1e-6), (key, name)


def test_generated_traces_are_over_seeds_and_keep_their_mark(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "s"
    ran = cli("sweep", "--generate", "poisson:jobs=60,rho=0.7", "--policy", "fifo", "--policy", "srtf", "--seeds", 3,
              "--load", 0.6, "--load", 1.4, "--devices", "1xa100-80g", "--workers", 1, "--out", out, "--plots")  # fmt: skip
    assert ran.code == 0, ran.err
    assert fits(ran.out)
    assert "MODELLED" in ran.out
    assert "over seeds" in ran.out
    assert "draws all jobs and their arrivals anew" in ran.out
    table = pd.read_csv(out / "results.csv")
    assert table["provenance"].str.startswith("MODELLED").all()
    assert set(table["interval_over"]) == {"seeds"}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["trace"]["provenance"].startswith("MODELLED")
    for text in (cli("compare", out).out, cli("compare", out, "--json").out):
        assert "MODELLED" in text
    assert "MODELLED" in (out / "plots" / "turnaround_vs_load.svg").read_text()


# --- overload and jobs that fit nowhere
# ------------------------------------------------------------------------------------------------


def test_overload_is_said_everywhere(cli: Cli, forty: Path, tmp_path: Path) -> None:
    said = "Overload: the jobs offer"
    runs, swept = tmp_path / "runs", tmp_path / "swept"
    ran = cli("simulate", "--trace", forty, "--policy", "fifo", "--devices", "1xl4", "--out", runs)
    load = json.loads((runs / "summary.json").read_text())["offered_load"]
    assert load > 1
    assert f"{said} {load:.3g} times what the devices can do" in " ".join(ran.out.split())
    assert said in cli("compare", runs).out
    ran = cli("sweep", "--trace", forty, "--policy", "fifo", "--devices", "1xl4", "--load", 0.5, "--load", 1.25,
              "--workers", 1, "--out", swept)  # fmt: skip
    assert f"{said} 1.25 times" in " ".join(ran.out.split())
    assert f"{said} 1.25 times" in " ".join(cli("compare", swept).out.split())
    assert pd.read_csv(swept / "results.csv")["offered_load"].tolist() == pytest.approx([0.5, 1.25])
    calm = cli("sweep", "--trace", forty, "--policy", "fifo", "--devices", "1xl4", "--load", 0.5, "--workers", 1,
               "--out", tmp_path / "calm")  # fmt: skip
    assert "Overload" not in calm.out


def test_jobs_that_fit_nowhere_are_counted_and_named(cli: Cli, tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "t.csv", (*ROWS[:6], HUGE))
    ran = cli("sweep", "--trace", trace, "--policy", "fifo", "--policy", LONG, "--devices", "1xl4", "--seeds", 2,
              "--workers", 1, "--out", tmp_path / "s")  # fmt: skip
    assert ran.code == 4  # as simulate ends
    assert "12/14" in ran.out
    assert "fifo: of 14 jobs 2 fit no device, for example huge" in " ".join(ran.out.split())
    assert "no device fits huge" in " ".join(cli("compare", tmp_path / "s").out.split())
    assert set(pd.read_csv(tmp_path / "s" / "results.csv")["unfit_jobs"]) == {"huge"}


def test_nothing_that_completes_is_never_nan(cli: Cli, tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "t.csv", (HUGE, HUGE.replace("huge", "huge2")))
    runs, swept = tmp_path / "runs", tmp_path / "swept"
    ran = [
        cli("simulate", "--trace", trace, "--policy", "fifo", "--devices", "1xl4", "--seeds", 2, "--out", runs),
        cli("compare", runs),
        cli("compare", runs, "--json"),
        cli("sweep", "--trace", trace, "--policy", "fifo", "--devices", "1xl4", "--workers", 1, "--out", swept),
        cli("sweep", "--trace", trace, "--policy", "fifo", "--devices", "1xl4", "--workers", 1, "--out", swept, "--resume",
            "--json"),
        cli("compare", swept),
        cli("plot", runs, "--report"),
    ]  # fmt: skip
    assert [one.code for one in ran] == [4, 0, 0, 4, 4, 0, 0]
    for one in ran:
        assert "nan" not in one.out.lower().replace("provenance", "")


# --- compare
# ------------------------------------------------------------------------------------------------


def test_compare_fits_80_columns_and_sorts_by_load_then_mean(cli: Cli, forty: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    policies = [word for name in ("fifo", "srtf", LONG, "aspen-fifo:k=2,residents=40") for word in ("--policy", name)]
    assert cli("sweep", "--trace", forty, *policies, "--devices", "1xl4", "--load", 0.5, "--load", 0.9, "--workers", 1,
               "--out", out, "--quiet").code == 0  # fmt: skip
    ran = cli("compare", out)
    assert fits(ran.out)
    assert "±" not in ran.out
    head = next(line.split() for line in ran.out.splitlines() if "policy" in line)
    assert head == ["load", "policy", "mean", "low", "high", "n", "change", "low", "high"]
    rows = json.loads(cli("compare", out, "--json").out)["rows"]
    means = [(r["load"], r["mean"]) for r in rows if r["metric"] == "turnaround_mean_s"]
    assert means == sorted(means)
    assert len(means) == 8
    order = [(r["load"], r["policy"]) for r in rows if r["metric"] == "turnaround_mean_s"]
    assert order == [(r["load"], r["policy"]) for r in rows if r["metric"] == "makespan_s"]
    simulated = cli("simulate", "--trace", forty, "--policy", "fifo", "--devices", "1xl4", "--out", tmp_path / "r").out
    cell = simulated.splitlines()[3].split()
    assert " ".join(cell[2:4]) in cli("compare", tmp_path / "r").out  # the same unit


def test_equal_names_are_told_apart(cli: Cli, forty: Path, tmp_path: Path) -> None:
    """One policy on two traces, or by two codes, is not two seeds of it."""
    other = write_trace(tmp_path / "other.csv", ROWS[:20])
    for name, trace in (("one", forty), ("two", other)):
        assert (
            cli("simulate", "--trace", trace, "--policy", "fifo", "--devices", "1xl4", "--out", tmp_path / name).code
            == 0
        )
        assert cli("sweep", "--trace", trace, "--policy", "fifo", "--devices", "1xl4", "--workers", 1, "--seeds", 2,
                   "--out", tmp_path / f"sweep-{name}").code == 0  # fmt: skip
    for folders, labels in (
        (("one", "two"), {"fifo [one]", "fifo [two]"}),
        (("sweep-one", "sweep-two"), {"fifo [sweep-one]", "fifo [sweep-two]"}),
    ):
        rows = json.loads(cli("compare", *(tmp_path / name for name in folders), "--json").out)["rows"]
        assert {row["policy"] for row in rows} == labels
        assert all(row["pairs"] == 0 for row in rows)  # they had other jobs: nothing is paired
    assert cli("simulate", "--trace", forty, "--policy", "fifo", "--devices", "1xl4", "--max-resident", 1,
               "--out", tmp_path / "three").code == 0  # fmt: skip
    rows = json.loads(cli("compare", tmp_path / "one", tmp_path / "three", "--json").out)["rows"]
    assert {row["policy"] for row in rows} == {"fifo (max-resident None)", "fifo (max-resident 1)"}


def test_near_loads_are_told_apart(cli: Cli, forty: Path, tmp_path: Path) -> None:
    ran = cli("sweep", "--trace", forty, "--policy", "fifo", "--devices", "1xl4", "--load", 0.8, "--load", 0.80000001,
              "--workers", 1, "--out", tmp_path / "s")  # fmt: skip
    for text in (ran.out, cli("compare", tmp_path / "s").out):
        assert "0.80000001" in text
        assert " 0.8 " in text or "\n0.8 " in text

"""Every chart: three files, equal bytes, no global state, every density, awkward names.

Timeline and commands.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import typer
from matplotlib.collections import PolyCollection
from typer.testing import CliRunner

from loramux_analysis.charts import CHARTS, gantt
from loramux_analysis.load import load
from loramux_analysis.plots import draw_charts
from loramux_analysis.report import write_report
from loramux_analysis.style import PALETTE, NothingToDrawError, colours, dashes, duration, time_unit
from loramux_analysis.timeline import chrome_trace
from loramux_cli.plot import compare_command, plot_command
from loramux_traces.errors import InvalidInputError, LoramuxError, StateError, UsageError
from loramux_traces.runfolder import MANIFEST, Run
from loramux_traces.tidy import write_results

MakeRun = Callable[..., Run]


def _check(paths: list[Path]) -> set[str]:
    """Each chart is there as PNG, SVG and CSV, none empty; returns their names."""
    names = {path.stem for path in paths}
    assert len(paths) == 3 * len(names)
    for path in paths:
        head = path.read_bytes()[:200]
        assert head.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".csv": b""}[path.suffix])
    for path in paths:
        if path.suffix == ".csv":
            assert len(pd.read_csv(path)) > 0
    return names


@pytest.fixture(scope="module")
def report(run_set: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The report of a set, and its charts."""
    return write_report(load([run_set]), tmp_path_factory.mktemp("report"))


def test_all_charts_of_a_set_twice_the_same(run_set: Path, report: list[Path], tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    told: list[str] = []
    first = draw_charts(load([run_set]), tmp_path / "a", tell=told.append)
    names = {
        "turnaround_cdf",
        "policies",
        "paired_differences",
        "gantt-fifo-s0",
        "gantt-sjf-s0",
        "over_time",
        "padding",
    }
    assert _check(first) == names
    assert [line.split(":")[0] for line in told if "left out" in line] == ["load", "real"]
    for a, b in zip(first, report[1:], strict=True):
        assert a.name == b.name and a.read_bytes() == b.read_bytes(), a.name
    assert dict(mpl.rcParams) == before


def test_charts_of_a_sweep(tmp_path: Path, sweep_rows: pd.DataFrame) -> None:
    write_results(tmp_path / "results.csv", sweep_rows)
    paths = draw_charts(load([tmp_path]), tmp_path / "plots")
    assert _check(paths) == {"policies", "paired_differences", "turnaround_vs_load", "padding"}
    data = pd.read_csv(tmp_path / "plots" / "turnaround_vs_load.csv")
    assert set(data["load"]) == {0.5, 0.7, 0.9}


def test_simulated_against_real(tmp_path: Path, make_run: MakeRun) -> None:
    for policy in ("fifo", "sjf"):
        make_run(tmp_path / f"{policy}-sim", policy, 0, jobs=60)
        make_run(tmp_path / f"{policy}-real", policy, 0, jobs=60, kind="real", slow=1.1)
    (path, _, table) = draw_charts(load([tmp_path]), tmp_path / "plots", ["real"])
    assert path.name == "simulated_vs_real.png"
    assert set(pd.read_csv(table)["policy"]) == {"fifo", "sjf"}


def test_gantt_chooses_its_form(big_run: Run, tmp_path: Path, make_run: MakeRun, monkeypatch: Any) -> None:
    results = load([big_run.path])
    (drawing,) = gantt.draw(results)
    bars = [c for axes in drawing.figure.axes for c in axes.collections if isinstance(c, PolyCollection)]
    # 1,000 jobs on 4 devices are still single bars
    assert sum(len(c.get_paths()) for c in bars) >= 1000
    assert len(drawing.figure.axes) == 8
    monkeypatch.setattr(gantt, "_MOST_LANES", 4)
    (stacked,) = gantt.draw(results)
    assert stacked.figure.axes[0].get_ylabel() == "residents"
    make_run(tmp_path / "wide", "fifo", 0, jobs=100, devices=20)
    (heat,) = gantt.draw(load([tmp_path]))
    assert heat.figure.axes[0].get_ylabel() == "device"
    assert heat.data["device_id"].nunique() == 20


def test_many_policies_with_awkward_names(tmp_path: Path, sweep_rows: pd.DataFrame) -> None:
    seed0 = sweep_rows[sweep_rows["policy"] == "fifo"]
    names = ["a$b$", "<script>", "=1+1", "x" * 90, "ünï", *(f"p{i}" for i in range(12))]
    write_results(tmp_path / "results.csv", pd.concat([seed0.assign(policy=name) for name in names]))
    results = load([tmp_path])
    assert set(results.policies) == set(names)
    assert len(_check(draw_charts(results, tmp_path / "plots"))) == 4
    assert "'=1+1" in (tmp_path / "plots" / "policies.csv").read_text()
    looks = {(colours(names)[name], dashes(names)[name]) for name in names}
    assert len(looks) == len(names)  # colour and dash together tell all apart


@pytest.mark.parametrize("jobs", [1, 2])
def test_tiny_runs(tmp_path: Path, make_run: MakeRun, jobs: int) -> None:
    make_run(tmp_path / "a", jobs=jobs, devices=1)
    assert {"turnaround_cdf", "policies", "gantt-fifo-s0"} <= _check(draw_charts(load([tmp_path]), tmp_path / "plots"))


def test_nothing_to_draw_is_said(tmp_path: Path, run_set: Path) -> None:
    results = load([run_set / "fifo-s0"])
    with pytest.raises(InvalidInputError, match=r"--kind load.*two loads"):
        draw_charts(results, tmp_path / "p", ["load"])
    with pytest.raises(UsageError, match="pie"):
        draw_charts(results, tmp_path / "p", ["pie"])
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(StateError, match="symlink"):
        draw_charts(results, tmp_path / "link")
    with pytest.raises(NothingToDrawError):
        CHARTS["paired"](results)


def test_no_pyplot_and_no_torch() -> None:
    code = "import sys, loramux_analysis.report; sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_time_units_and_colours() -> None:
    assert time_unit(100) == (1.0, "s")
    assert time_unit(3600 * 5)[1] == "h"
    assert [duration(x) for x in (0.5, 45, 150, 11160, 86400 * 12)] == ["0.5 s", "45 s", "150 s", "3.1 h", "12 d"]
    assert colours(["a", "b"]) == {"a": PALETTE[0], "b": PALETTE[1]}


def test_chrome_trace(big_run: Run) -> None:
    trace = json.loads(json.dumps(chrome_trace(big_run), allow_nan=False))
    stays = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(stays) == 1000
    lanes = defaultdict(list)
    for event in stays:
        lanes[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert len(lanes) == 4 * 8
    for spans in lanes.values():
        spans.sort()
        assert all(a[1] <= b[0] for a, b in pairwise(spans))
    counters = {event["name"] for event in trace["traceEvents"] if event["ph"] == "C"}
    assert counters == {"waiting jobs", "memory (GiB)", "residents"}
    assert max(e["args"]["used"] for e in trace["traceEvents"] if e.get("name") == "memory (GiB)") <= 80


def test_report(report: list[Path]) -> None:
    written, *charts = report
    text = written.read_text()
    assert "| policy |" in text
    assert "Little" in text
    assert "![over_time](plots/over_time.png)" in text
    assert len(_check(charts)) == 7


@pytest.fixture
def invoke() -> Callable[..., Any]:
    app = typer.Typer()
    app.command("plot")(plot_command)
    app.command("compare")(compare_command)
    return lambda *args: CliRunner().invoke(app, [str(a) for a in args])


def test_plot_command(invoke: Callable[..., Any], run_set: Path, tmp_path: Path) -> None:
    done = invoke("plot", run_set, "--kind", "cdf", "--kind", "perfetto", "--out", tmp_path / "p")
    assert done.exit_code == 0, done.output
    assert [Path(line).name for line in done.stdout.split()] == [
        "turnaround_cdf.png",
        "timeline-sjf-s0.json",
        "timeline-fifo-s0.json",
    ]
    assert "cdf: turnaround_cdf" in done.stderr
    assert invoke("plot", run_set, "--kind", "cdf", "--out", tmp_path / "p", "--quiet").stderr == ""
    wrong = invoke("plot", tmp_path / "nothing")
    assert isinstance(wrong.exception, LoramuxError)
    assert wrong.exception.exit_code == 2
    assert isinstance(invoke("plot", run_set, "--report", "--kind", "cdf").exception, UsageError)


def test_compare_command(invoke: Callable[..., Any], run_set: Path, tmp_path: Path, make_run: MakeRun) -> None:
    done = invoke("compare", run_set)
    assert done.exit_code == 0, done.output
    assert "turnaround" in done.stdout
    assert "paired change against fifo" in done.stdout
    value = json.loads(invoke("compare", run_set, "--json", "--baseline", "sjf").stdout)
    assert value["baseline"] == "sjf"
    assert value["real"] == []
    evil = make_run(tmp_path / "runs" / "sim", "fifo", 0, jobs=30)
    make_run(tmp_path / "runs" / "real", "fifo", 0, jobs=30, kind="real", slow=1.1)
    (evil.path / MANIFEST).write_text(json.dumps({**evil.manifest, "fidelity": "\x1b[31m[red]|x"}))
    done = invoke("compare", tmp_path / "runs", "--out", tmp_path / "c")
    assert "Simulated against real" in done.stdout
    assert "\x1b" not in done.stdout
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        "comparison.csv",
        "comparison.json",
        "comparison.md",
    ]
    assert json.loads((tmp_path / "c" / "comparison.json").read_text())["real"][0]["jobs"] == 30
    assert np.isfinite(pd.read_csv(tmp_path / "c" / "comparison.csv")["mean"]).any()

"""The run folder: exact round trip, equal bytes, nothing overwritten, corrupt files named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_traces.errors import InvalidInputError, StateError
from loramux_traces.filesafe import atomic, guard_cell, json_text, unguard_cell
from loramux_traces.results import JOB_COLUMNS
from loramux_traces.runfolder import Run, find_runs, prepare_folder, read_run, run_folder_name, write_run
from loramux_traces.tidy import flatten_summary, read_results, write_results

MakeRun = Callable[..., Run]


def test_round_trip_is_exact(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "a", jobs=50)
    copy = prepare_folder(tmp_path / "b")
    write_run(
        copy,
        manifest=run.manifest,
        jobs=run.jobs.iloc[::-1],
        events=run.events(),
        summary=run.summary,
        timeline=run.timeline,
    )
    pd.testing.assert_frame_equal(read_run(copy).jobs, run.jobs)
    names = sorted(p.name for p in run.path.iterdir())
    assert names == ["events.jsonl", "jobs.csv", "manifest.json", "summary.json", "timeline.json.gz"]
    for name in names:  # row order and dtype of the source leave no mark: equal bytes
        assert (copy / name).read_bytes() == (run.path / name).read_bytes(), name


def test_formula_cells_are_guarded_on_disk_only(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "a", jobs=100)
    assert "'=out of memory, twice" in (run.path / "jobs.csv").read_text()
    assert run.jobs["reason"].iloc[96] == "=out of memory, twice"
    assert (run.jobs["priority"] == -1).all()  # a negative number is no formula


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])))
def test_guard_is_inverted_by_unguard(text: str) -> None:
    guarded = guard_cell(text)
    assert unguard_cell(guarded) == text
    assert not guarded.strip().startswith(("=", "+", "-", "@"))


def test_awkward_text_survives(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "a", jobs=8)
    users = ["NA", "nan", "", "'x", 'quo"te, comma', "-1", "1e9", "é\u00a0"]
    jobs = run.jobs.assign(user=users, reason="two\nlines\x00")
    write_run(run.path, manifest=run.manifest, jobs=jobs, events=None, summary={}, timeline=None)
    again = read_run(run.path).jobs
    assert again["user"].tolist() == users
    assert set(again["reason"]) == {"two lines "}


def test_json_never_has_nan() -> None:
    value = {"b": np.float64("nan"), "a": [np.inf, np.int64(3)], "c": np.array([1.0, np.nan])}
    assert json_text(value) == '{"a":[null,3],"b":null,"c":[1.0,null]}'
    with pytest.raises(TypeError, match="set"):
        json_text({"x": {1}})


def test_events_with_numpy_values_and_gaps(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "a", jobs=3)
    events = [{"t_s": np.float64(1.5), "n": np.int64(2)}, {"x": float("nan")}]
    write_run(run.path, manifest=run.manifest, jobs=run.jobs, events=events, summary={}, timeline=None)
    assert list(read_run(run.path).events()) == [{"n": 2, "t_s": 1.5}, {"x": None}]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "x") as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"
    with pytest.raises(StateError, match="cannot be written"), atomic(tmp_path / "missing" / "x"):
        pass


def test_prepare_refuses_and_forces(tmp_path: Path, make_run: MakeRun) -> None:
    folder = tmp_path / "out"
    make_run(folder / "fifo-s0", jobs=3)
    (folder / "manifest.json").write_text('{"schema_version": 1, "kind": "simulated"}')
    (folder / "notes.txt").write_text("mine")
    (folder / "fifo-s0" / "plots").mkdir()
    (folder / "fifo-s0" / "plots" / "gantt.png").write_bytes(b"")
    with pytest.raises(StateError, match="not empty") as caught:
        prepare_folder(folder)
    assert caught.value.exit_code == 6
    prepare_folder(folder, resume=True)
    assert (folder / "fifo-s0" / "jobs.csv").is_file()
    prepare_folder(folder, force=True)
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]


def test_force_never_touches_what_is_not_a_run(tmp_path: Path, make_run: MakeRun) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "jobs.csv").write_text("job_id,submit_s\n")  # a user's trace has the name of our table
    with pytest.raises(StateError, match="not a loramux run"):
        prepare_folder(home, force=True)
    run = make_run(tmp_path / "a", jobs=3)
    with pytest.raises(StateError, match="not overwritten"):
        write_run(home, manifest={}, jobs=run.jobs, events=None, summary={}, timeline=None)
    assert (home / "jobs.csv").read_text() == "job_id,submit_s\n"
    (run.path / "adapters").mkdir()
    with pytest.raises(StateError, match="adapters"):
        prepare_folder(run.path, force=True)
    (tmp_path / "link").symlink_to(home)
    with pytest.raises(StateError, match="symlink"):
        prepare_folder(tmp_path / "link", force=True)
    with pytest.raises(StateError, match="a file"):
        prepare_folder(home / "jobs.csv")


def _cut_gzip(folder: Path) -> None:
    data = (folder / "timeline.json.gz").read_bytes()
    (folder / "timeline.json.gz").write_bytes(data[: len(data) // 2])


def _ragged_timeline(folder: Path) -> None:
    value = json.loads(gzip.decompress((folder / "timeline.json.gz").read_bytes()))
    value["queue"]["t_s"].pop()
    (folder / "timeline.json.gz").write_bytes(gzip.compress(json.dumps(value).encode()))


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (lambda d: (d / "manifest.json").write_text("{"), "manifest.json"),
        (lambda d: (d / "manifest.json").write_text('{"schema_version": 99}'), "manifest.json"),
        (lambda d: (d / "manifest.json").write_text('{"schema_version": 1}'), "manifest.json"),
        (lambda d: (d / "manifest.json").unlink(), "manifest.json"),
        (lambda d: (d / "summary.json").write_text("[]"), "summary.json"),
        (lambda d: (d / "summary.json").unlink(), "summary.json"),
        (lambda d: (d / "jobs.csv").write_bytes(b"\xff\xfe\x00"), "jobs.csv"),
        (lambda d: (d / "jobs.csv").write_text(""), "jobs.csv"),
        (lambda d: (d / "jobs.csv").write_text((d / "jobs.csv").read_text().replace(",lora", ",lora,7")), "jobs.csv"),
        (lambda d: (d / "jobs.csv").write_text((d / "jobs.csv").read_text().replace("-1,1", "-1,x")), "num_gpus"),
        (lambda d: (d / "events.jsonl").write_text('{"a": 1}\n{"b"'), "events.jsonl:2"),
        (_cut_gzip, "timeline.json.gz"),
        (_ragged_timeline, "queue"),
    ],
)
def test_corrupt_files_are_named(tmp_path: Path, make_run: MakeRun, damage: Callable[[Path], Any], file: str) -> None:
    run = make_run(tmp_path / "a", jobs=30)
    damage(run.path)
    with pytest.raises(StateError, match=file) as caught:
        again = read_run(run.path)
        list(again.events())
        assert again.timeline
    assert str(run.path) in str(caught.value)


def test_find_runs(run_set: Path, tmp_path: Path) -> None:
    assert [r.path.name for r in find_runs(run_set)] == [f"{p}-s{s}" for p in ("fifo", "sjf") for s in range(3)]
    assert len(find_runs(run_set / "fifo-s0")) == 1
    for bad in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InvalidInputError, match=str(bad)):
            find_runs(bad)
    (tmp_path / "results.csv").write_text("policy,seed\n")
    assert find_runs(tmp_path) == []


def test_a_run_without_log_and_timeline(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "a", jobs=3)
    for name in ("events.jsonl", "timeline.json.gz"):
        (run.path / name).unlink()
    again = read_run(run.path)
    assert not again.has_timeline
    assert again.timeline["segments"]["job_id"] == []
    assert list(again.events()) == []


def test_folder_names() -> None:
    assert run_folder_name("aspen:k=8,candidates=60", 3) == "aspen-k-8-candidates-60-s3"
    assert run_folder_name("../../etc", 0) == "etc-s0"
    assert len(run_folder_name("x" * 300, 0)) < 100


def test_flat_summary_and_results(tmp_path: Path, sweep_rows: pd.DataFrame) -> None:
    summary = {"turnaround_s": {"mean": 1.0, "p50": 2.0}, "stretch": {"max": 3}, "notes": ["a", "b"], "x": {}}
    row = flatten_summary(summary)
    assert row["turnaround_mean_s"] == 1.0
    assert row["turnaround_max_s"] is None
    assert row["stretch_max"] == 3
    assert row["notes"] == "a; b"
    assert {"waiting_p95_s", "makespan_s", "memory_peak_bytes", "sim_wall_s"} <= set(sweep_rows.columns)
    write_results(tmp_path / "results.csv", sweep_rows.assign(params="=1"))
    assert ",'=1," in (tmp_path / "results.csv").read_text()
    again = read_results(tmp_path)
    assert set(again["params"]) == {"=1"}
    assert again["turnaround_mean_s"].tolist() == sweep_rows["turnaround_mean_s"].tolist()
    with pytest.raises(InvalidInputError):
        read_results(tmp_path / "nowhere")
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(StateError, match="policy"):
        read_results(tmp_path)


def test_missing_column_is_a_defect(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="jobs lacks submission_time"):
        write_run(tmp_path, manifest={}, jobs=pd.DataFrame({"job_id": []}), events=None, summary={}, timeline=None)
    empty = pd.DataFrame({name: [] for name in JOB_COLUMNS})
    write_run(tmp_path, manifest={"policy": "x"}, jobs=empty, events=[], summary={}, timeline=None)
    assert len(read_run(tmp_path).jobs) == 0

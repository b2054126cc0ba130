"""`loramux simulate`.

What it prints, what it writes, and that nothing but the trace and the seed decides it.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loramux_cli.main import simulate_main

from .conftest import HEADER, ROWS, Cli, write_trace

RUN_KEYS = {
    "policy", "seed", "jobs", "completed", "failed", "unschedulable", "makespan_s", "turnaround_s", "waiting_s", "stretch",
    "effective_tokens_per_s", "padding_fraction", "gpu_busy_fraction", "memory_peak_bytes", "memory_capacity_bytes",
    "preemptions", "oom_events", "steps", "sim_wall_s",
}  # fmt: skip
SPREAD = {"mean", "p50", "p95", "p99", "max"}
FAST = ("--devices", "2xl4", "--quiet")


def timeless(value: Any) -> Any:
    """JSON without the program's own times."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if "wall" not in key}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def files_of(folder: Path) -> dict[str, Any]:
    """Every file of a folder: JSON without times and argv, all else as bytes."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = json.dumps(timeless(json.loads(path.read_text())), sort_keys=True)
        else:
            found[name] = path.read_bytes()
    return found


def test_json_is_one_object_and_nothing_else(cli: Cli, trace: Path) -> None:
    ran = cli("simulate", "--trace", trace, "--policy", "fifo", "--policy", "aspen:k=2", "--seeds", 2, *FAST, "--json")
    assert ran.code == 0
    report = json.loads(ran.out)
    assert set(report) == {
        "schema_version", "trace", "offered_load", "seeds", "intervals", "runs", "policy_errors",
    }  # fmt: skip
    assert report["schema_version"] == 1
    assert report["trace"]["jobs"] == 18
    assert [(run["policy"], run["seed"]) for run in report["runs"]] == [
        ("fifo", 0), ("fifo", 1), ("aspen:k=2", 0), ("aspen:k=2", 1),
    ]  # fmt: skip
    for run in report["runs"]:
        assert set(run) >= RUN_KEYS
        assert run["jobs"] == run["completed"] == 18
        for name in ("turnaround_s", "waiting_s", "stretch"):
            assert set(run[name]) == SPREAD
            assert all(isinstance(value, float) for value in run[name].values())
    assert ran.err == ""


def test_notes_and_explanations_go_to_stderr(cli: Cli, tmp_path: Path) -> None:
    rows = (*ROWS, "huge,1,llama-2-13b,lora,1,100000,10,0")
    path = write_trace(tmp_path / "t.csv", rows)
    ran = cli(
        "simulate", "--trace", path, "--policy", "aspen-fifo:k=2", "--devices", "1xl4", "--json", "--explain", "j03",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert ran.code == 4
    assert json.loads(ran.out)["runs"][0]["unschedulable"] == 1
    assert "huge: UNSCHEDULABLE" in ran.err
    assert "roll-out" in ran.err
    assert "j03" not in ran.out


@pytest.mark.parametrize("as_json", [True, False])
def test_progress_never_reaches_stdout(cli: Cli, trace: Path, as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    ran = cli("simulate", "--trace", trace, "--policy", "fifo", "--devices", "1xl4", *(["--json"] if as_json else []))
    assert ran.code == 0
    assert "seed 0" not in ran.out
    assert "\x1b" not in ran.out
    if as_json:
        json.loads(ran.out)


def test_explaining_changes_nothing(cli: Cli, trace: Path) -> None:
    command = (
        "simulate",
        "--trace",
        trace,
        "--policy",
        "fifo",
        "--policy",
        "srtf",
        "--max-resident",
        1,
        *FAST,
        "--json",
    )
    plain, explained = cli(*command), cli(*command, "--explain", "j11")
    assert timeless(json.loads(plain.out)) == timeless(json.loads(explained.out))
    lines = explained.err.splitlines()
    assert any(line.startswith("fifo ") and "waits" in line for line in lines)
    assert any("starts on device" in line for line in lines)
    assert any(line.startswith("srtf ") for line in lines)


@pytest.mark.parametrize("policy", ["fifo", "aspen", "las", "lookahead-milp", "max-min"])
@pytest.mark.parametrize("fidelity", ["rate", "step"])
def test_one_seed_one_result(cli: Cli, trace: Path, tmp_path: Path, policy: str, fidelity: str) -> None:
    out = tmp_path / "out"
    command = (
        "simulate",
        "--trace",
        trace,
        "--policy",
        policy,
        "--fidelity",
        fidelity,
        "--seed",
        3,
        *FAST,
        "--out",
        out,
    )
    ran, files = [], []
    for _ in range(2):
        ran.append(cli(*command, "--json", "--force"))
        files.append(files_of(out))
        shutil.rmtree(out)
    assert timeless(json.loads(ran[0].out)) == timeless(json.loads(ran[1].out))
    assert files[0] == files[1]
    folder = next(name.split("/")[0] for name in files[0] if "/" in name)
    assert {f"{folder}/{name}" for name in ("manifest.json", "jobs.csv", "events.jsonl", "summary.json", "timeline.json.gz")} | {
        "manifest.json", "summary.json",
    } == set(files[0])  # fmt: skip
    gzip.decompress(files[0][f"{folder}/timeline.json.gz"])


@pytest.mark.parametrize("fidelity", ["rate", "step"])
def test_the_order_of_rows_changes_nothing(cli: Cli, tmp_path: Path, fidelity: str) -> None:
    ties = tuple(row.replace(f",{7 * i},", f",{7 * (i // 4)},", 1) for i, row in enumerate(ROWS))
    outputs, tables = [], []
    for seed in range(3):
        rows = list(ties)
        Random(seed).shuffle(rows)
        path = write_trace(tmp_path / "jobs.csv", tuple(rows))
        out = tmp_path / "out"
        ran = cli(
            "simulate", "--trace", path, "--policy", "fifo", "--policy", "aspen", "--policy", "srtf", "--fidelity", fidelity,
            *FAST, "--json", "--out", out, "--force",
        )  # fmt: skip
        outputs.append(timeless(json.loads(ran.out)))
        tables.append(files_of(out))
    assert outputs[0] == outputs[1] == outputs[2]
    assert tables[0] == tables[1] == tables[2]


def test_columns_in_any_order_and_file_formats(cli: Cli, trace: Path, tmp_path: Path) -> None:
    table = pd.read_csv(trace)
    again = tmp_path / "again"
    again.mkdir()
    table[table.columns[::-1]].to_csv(again / "jobs.csv", index=False)
    (again / "jobs.jsonl").write_text("\n".join(json.dumps(row) for row in table.to_dict(orient="records")))
    with gzip.open(again / "jobs.csv.gz", "wt") as file:
        file.write(trace.read_text())
    runs = []
    for path in (trace, *sorted(again.iterdir())):
        ran = cli("simulate", "--trace", path, "--policy", "aspen", *FAST, "--json")
        report = timeless(json.loads(ran.out))
        assert report["trace"].pop("name")
        runs.append(report)
    assert all(run == runs[0] for run in runs)


def test_simulate_alone_is_loramux_simulate(
    cli: Cli, trace: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--trace", str(trace), "--policy", "srtf", *FAST, "--json"]
    long = cli("simulate", *arguments)
    simulate_main_code = 0
    try:
        simulate_main(arguments)
    except SystemExit as ended:
        simulate_main_code = int(ended.code or 0)
    assert simulate_main_code == long.code == 0
    assert timeless(json.loads(capfd.readouterr().out)) == timeless(json.loads(long.out))


def test_the_table_has_a_row_per_policy(cli: Cli, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    ran = cli("simulate", "--trace", trace, "--policy", "fifo", "--policy", "srtf", "--policy", "exclusive", *FAST)
    assert ran.code == 0
    lines = [line.split() for line in ran.out.splitlines()]
    assert [words[0] for words in lines if words and words[0] in ("fifo", "srtf", "exclusive")] == [
        "fifo",
        "srtf",
        "exclusive",
    ]
    assert "18/18" in ran.out
    assert "costs assumed" in ran.out
    assert "{" not in ran.out


def test_the_sample_needs_no_arguments(cli: Cli) -> None:
    ran = cli("simulate", "--json", "--quiet")
    assert ran.code == 0
    report = json.loads(ran.out)
    assert [run["policy"] for run in report["runs"]] == ["fifo", "aspen"]
    assert "MODELLED" in report["trace"]["provenance"]


def test_several_seeds_in_step_fidelity_differ(cli: Cli, trace: Path) -> None:
    ran = cli(
        "simulate",
        "--trace",
        trace,
        "--policy",
        "fifo",
        "--fidelity",
        "step",
        "--seed",
        5,
        "--seeds",
        3,
        *FAST,
        "--json",
    )
    runs = json.loads(ran.out)["runs"]
    assert [run["seed"] for run in runs] == [5, 6, 7]
    assert len({run["turnaround_s"]["mean"] for run in runs}) == 3


def test_jobs_csv_agrees_with_the_summary(cli: Cli, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = cli("simulate", "--trace", trace, "--policy", "aspen:k=3", *FAST, "--json", "--out", out)
    run = json.loads(ran.out)["runs"][0]
    table = pd.read_csv(out / "aspen-k-3-s0" / "jobs.csv")
    assert run["turnaround_s"]["mean"] == pytest.approx(table["turnaround_time"].mean())
    assert run["turnaround_s"]["p95"] == pytest.approx(table["turnaround_time"].quantile(0.95))
    assert run["makespan_s"] == pytest.approx(table["finish_time"].max() - table["submission_time"].min())
    manifest = json.loads((out / "aspen-k-3-s0" / "manifest.json").read_text())
    assert manifest["policy"] == "aspen:k=3"
    assert manifest["origin"] == "assumed"
    events = [json.loads(line) for line in (out / "aspen-k-3-s0" / "events.jsonl").read_text().splitlines()]
    assert [event["t_s"] for event in events] == sorted(event["t_s"] for event in events)


CELLS = st.sampled_from([
    "", "nan", "NaN", "inf", "-1", "0", "1e400", "-0", "1e309", "9" * 400, "\x00", "\ufeff", "\x1b[31m", "a b", "=1+1",
    "x,y", '"', "'", "llama-7b", "lora", "1507532515", "2017-10-09 07:01:55", "é", "💥", "0x10", "1_000", "١", "true", "[]",
    "{}", "../../etc/passwd", "\r", "\n", "\t5", "5 ", "1.5", "smollm2-135m", "8",
])  # fmt: skip


@st.composite
def malformed(draw: st.DrawFn) -> bytes:
    """A trace file with something wrong with it (now and then something harmless)."""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return draw(st.binary(max_size=200))
    header = HEADER.split(",")
    rows = [row.split(",") for row in ROWS[: draw(st.integers(0, 4))]]
    if kind == 1:
        index = draw(st.integers(0, len(header) - 1))
        header[index] = draw(
            st.sampled_from(["", "jobid", "submit", "job_id", "x_note", "Method", "\x00", "seq_len", "duration_s"])
        )
    for _ in range(draw(st.integers(1, 3))):
        if rows:
            row = rows[draw(st.integers(0, len(rows) - 1))]
            change = draw(st.integers(0, 3))
            if change == 0:
                row.append(draw(CELLS))
            elif change == 1 and row:
                row.pop()
            elif row:
                row[draw(st.integers(0, len(row) - 1))] = draw(CELLS)
    if kind == 2:
        rows += rows
    text = "\n".join([",".join(header), *(",".join(row) for row in rows)])
    raw = text.encode("utf-8", "surrogatepass")
    if kind == 3:
        raw = draw(st.sampled_from([b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b", b"PK\x03\x04", b"{", b"["])) + raw
    if kind == 4:
        cut = draw(st.integers(0, len(raw)))
        raw = raw[:cut] + draw(st.binary(max_size=5)) + raw[cut + 3 :]
    return raw


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path


NAMES = st.sampled_from(["jobs.csv", "jobs.csv", "jobs.csv", "jobs.json", "jobs.jsonl", "jobs.yaml", "jobs.csv.gz"])


@pytest.mark.parametrize("examples", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_malformed_files(cli: Cli, place: Path, examples: int) -> None:
    @settings(
        max_examples=examples, deadline=None, derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip
    @given(malformed(), NAMES)
    def refused_or_run(raw: bytes, name: str) -> None:
        path = place / name
        path.write_bytes(raw)
        ran = cli("simulate", "--trace", path, "--policy", "fifo", "--devices", "1xl4", "--json", "--quiet")
        assert ran.code in (0, 2, 4), ran.err
        assert "internal error" not in ran.err
        assert all(c.isprintable() or c == "\n" for c in ran.err)
        if ran.code == 2:
            assert ran.out == ""
            assert name in ran.err or "base model" in ran.err or "unknown" in ran.err
        else:
            assert json.loads(ran.out)["runs"]

    refused_or_run()


def test_a_measured_profile_as_the_device(cli: Cli, tmp_path: Path) -> None:
    """By the name of one that ships, for its own model.

    Other models only when that is asked for.
    """
    trace = tmp_path / "jobs.csv"
    trace.write_text(
        "job_id,submit_s,base_model,method,batch_size,seq_len,total_steps,dtype\n"
        "a,0,llama-tiny,lora,4,60,20,fp32\nb,1,llama-tiny,dynmole,4,60,20,fp32\n"
    )
    done = cli("simulate", "--trace", trace, "--device-profile", "cpu/llama-tiny", "--policy", "aspen")
    assert done.code == 0 and "costs fitted" in done.out
    refused = cli("simulate", "--device-profile", "cpu/llama-tiny", "--policy", "fifo", "--quiet")
    assert refused.code == 2 and "the profile is of llama-tiny in fp32, not of" in refused.err
    trace.write_text(trace.read_text() + "c,2,tinyllama-1.1b,lora,1,60,2,fp32\n")
    assert cli("simulate", "--trace", trace, "--device-profile", "cpu/llama-tiny", "--policy", "fifo").code == 2
    options = ("--device-profile", "cpu/llama-tiny", "--policy", "fifo", "--allow-other")
    allowed = cli("simulate", "--trace", trace, *options)
    assert allowed.code == 0 and "3/3" in allowed.out and "costs assumed" in allowed.out

"""`loramux profile` and `loramux fit` from the command line.

What they leave, what they refuse, how they end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loramux_profiles.records import read_record, write_record

from ..profiles.measured import document, record
from ..tiny_model import config as config_of
from ..waiting import communicated, size_of, until
from .conftest import Cli

CONFIG = config_of(head_dim=16, vocab_size=80)
SMALL = ("--max-length", "6", "--max-tokens", "30", "--device", "cpu")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CONFIG))
    return path


SMALL_BLOCKS = """
from loramux_cli.main import main
from loramux_runtime.profiler import session
session.BLOCK = 3
main()
"""


def started(config: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    """`loramux profile` in a process of its own, three steps at a time."""
    command = [sys.executable, "-c", SMALL_BLOCKS, "profile", "--shape", str(config), "--out", str(out)]
    return subprocess.Popen(
        [*command, *SMALL, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_lines(process: subprocess.Popen[str], path: Path, n: int) -> None:
    """Until the journal has so many lines."""
    until(lambda: path.exists() and path.read_bytes().count(b"\n") >= n, process=process, progress=size_of(path))


@pytest.mark.slow  # test_profiler breaks one off within this process; the command line's resume is below
def test_a_killed_run_goes_on_and_its_record_is_whole(config: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "tiny.json"
    journal = tmp_path / "tiny.json.partial.jsonl"
    with started(config, out, "--points", "500") as process:
        wait_for_lines(process, journal, 8)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    before = journal.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    assert not out.exists()
    refused = cli("profile", "--shape", str(config), "--out", str(out), *SMALL)
    assert refused.code == 6
    assert "--resume" in refused.err
    with started(config, out, "--resume", "--points", "10") as process:
        stdout, stderr = communicated(process)
    assert process.returncode == 0, stderr
    assert "10 steps, 10 timed" in stdout
    assert not journal.exists()
    kept = [json.loads(line) for line in whole.splitlines()]
    points = read_record(out).points
    samples: dict[int, list[float]] = {}
    for line in kept[1:]:
        if "memory" in line:
            assert points[line["point"]].memory.dynamic == line["memory"]["dynamic"]
        else:
            samples.setdefault(line["point"], []).append(line["seconds"])
    assert samples
    for index, seen in samples.items():
        measured = points[index].time
        assert measured is not None
        assert list(measured.samples[: len(seen)]) == seen


def test_an_interrupt_writes_what_there_is(
    config: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tiny.json"
    with started(config, out, "--points", "500") as process:
        wait_for_lines(process, tmp_path / "tiny.json.partial.jsonl", 24)
        process.send_signal(signal.SIGINT)
        _, stderr = communicated(process)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    found = read_record(out)
    assert found.timed
    assert found.transfers is None
    assert (tmp_path / "tiny.json.partial.jsonl").exists()
    monkeypatch.setattr("loramux_runtime.profiler.session.BLOCK", 3)
    ran = cli("profile", "--shape", config, "--out", out, *SMALL, "--resume", "--points", "1")
    assert ran.code == 0, ran.err
    again = read_record(out)
    assert [p.step for p in again.points] == [p.step for p in found.points]
    assert again.timed[: len(found.timed)] == found.timed
    assert len(again.timed) == len(again.points)
    assert again.transfers is not None


def test_usage_errors(config: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "tiny.json"
    for arguments, code, text in (
        ((), 2, "--shape NAME or --path FOLDER"),
        (("--shape", "llama-8"), 2, "did you mean"),
        (("--shape", str(config), "--budget", "soon"), 2, "--budget 'soon'"),
        (("--shape", str(config), "--dtype", "int8"), 2, "fp32 or bf16"),
        (("--shape", str(config), "--device", "cuda"), 5, "CUDA devices"),
        (("--shape", str(config), "--memory", "much"), 2, "--memory 'much'"),
    ):
        ran = cli("profile", *arguments, "--out", str(out))
        assert (ran.code, text in ran.err) == (code, True), ran.err
        assert len(ran.err.strip().splitlines()) <= 2
        assert not out.exists()
    out.write_text("{}")
    assert cli("profile", "--shape", str(config), "--out", str(out)).code == 6


def test_check_says_what_a_profile_holds_and_refuses_others(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "toy.json"
    write_record(file, record(5))
    ran = cli("profile", "--check", str(file))
    assert (ran.code, "5 steps, 5 timed, 0 out of memory" in ran.out) == (0, True)
    as_json = json.loads(cli("profile", "--check", str(file), "--json").out)
    assert as_json["profile"]["points"] == 5
    text = file.read_text()
    for bad, what in (
        (text[:-200], "JSON"),
        (text.replace('"state":10', '"state":11', 1), "damaged"),
        ("[]", "object"),
    ):
        file.write_text(bad)
        ran = cli("profile", "--check", str(file))
        assert (ran.code, what in ran.err, ran.err.count("\n")) == (2, True, 1), ran.err
    assert cli("profile", "--check", str(tmp_path / "none.json")).code == 2


def journal_lines(points: int, **device: object) -> list[dict[str, object]]:
    """What the GPU suite would leave of the made-up device."""
    made = document(points)
    rows = made.pop("points")
    made["device"] |= {"name": ""} | device
    lines: list[dict[str, object]] = [{"identity": {**made, "seed": 0, "repeats": 5}}, {"note": {"date": "2026-01-03"}}]
    for i, row in enumerate(rows):
        lines.append({"point": i, "step": row["step"], "memory": row["memory"]})
        lines += [{"point": i, "seconds": s, "active": None, "anchor": None} for s in row["time"]["samples"]]
    return lines


def write_journal(path: Path, lines: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_journal_from_elsewhere_becomes_a_profile(tmp_path: Path, cli: Cli) -> None:
    lines = journal_lines(30, kind="cuda", description="NVIDIA H100 80GB HBM3")
    journal, out = write_journal(tmp_path / "profile-toy.jsonl", lines), tmp_path / "toy.json"
    before = journal.read_bytes()
    ran = cli("profile", "--from-journal", journal, "--out", out)
    assert (ran.code, "30 steps, 30 timed" in ran.out) == (0, True), ran.err
    found = read_record(out)
    assert (found.device.name, found.date, found.transfers) == ("h100-80g", "2026-01-03", None)
    assert found.fit is not None and found.fit.time is not None
    assert journal.read_bytes() == before
    assert cli("profile", "--from-journal", journal, "--out", out).code == 6
    # cut off in mid-line, as by a kill: all but the last time is there, and the last step counts by
    # its peak
    journal.write_bytes(before[:-10])
    ran = cli("profile", "--from-journal", journal, "--out", out, "--force", "--device-name", "mine")
    assert (ran.code, "30 steps, 29 timed" in ran.out) == (0, True), ran.err
    assert read_record(out).device.name == "mine"


def test_journals_that_are_damaged_or_of_nothing_are_refused(tmp_path: Path, cli: Cli) -> None:
    good = journal_lines(3)
    no_model = {"identity": {k: v for k, v in good[0]["identity"].items() if k != "model"}}  # type: ignore[attr-defined]
    unknown = journal_lines(3, kind="cuda", description="Voodoo 2")
    out = tmp_path / "toy.json"
    for lines, what in (
        ([], "no measured step"),
        (good[:2], "no measured step"),
        (good[2:], ":1: "),
        ([*good[:3], {"point": 2, "seconds": 1.0, "active": None, "anchor": None}], ":4: "),
        ([*good[:3], {"point": 0, "seconds": 0.0, "active": None, "anchor": None}], ":4: "),
        ([*good[:2], {**good[2], "memory": {"dynamic": -1, "state": 1, "total": 1}}], "memory.dynamic"),
        ([good[0], {"note": 5}, *good[2:]], ":2: "),
        ([good[0], {"note": {"transfers": {}}}, *good[2:]], "damaged"),
        ([no_model, *good[1:]], "model"),
        (unknown, "no device profile ships for 'Voodoo 2'"),
    ):
        ran = cli("profile", "--from-journal", write_journal(tmp_path / "j.jsonl", lines), "--out", out)
        assert (ran.code, what in ran.err) == (2, True), (what, ran.err)
        assert ran.err.count("\n") <= 2
        assert not out.exists()
    assert cli("profile", "--from-journal", tmp_path / "none.jsonl", "--out", out).code == 2


def test_fit_puts_models_into_the_file(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "toy.json"
    write_record(file, record(120, noise=0.02))
    ran = cli("fit", str(file), "--plots", str(tmp_path / "plots"))
    assert ran.code == 0, ran.err
    assert "step time, ours" in ran.out
    assert "mLoRA's form" in ran.out
    assert (tmp_path / "plots" / "toy-time.png").stat().st_size > 1000
    fit = read_record(file).fit
    assert fit is not None and fit.time is not None
    assert fit.time.cross_validated.mape < 0.05
    before = file.read_bytes()
    document = json.loads(cli("fit", str(file), "--json").out)
    assert document["profiles"][0]["fit"]["time"]["cross_validated"]["n"] == 120
    assert file.read_bytes() == before  # the same points, the same fit


def test_fit_changes_no_file_where_one_is_bad(tmp_path: Path, cli: Cli) -> None:
    good, short = tmp_path / "good.json", tmp_path / "short.json"
    write_record(good, record(120))
    before = good.read_bytes()
    short.write_text("{")
    assert cli("fit", str(good), str(short)).code == 2
    assert good.read_bytes() == before
    write_record(short, record(4))
    ran = cli("fit", str(short))
    assert (ran.code, "too few measured steps" in ran.err) == (2, True)

"""Names in a trace that only the cost models know, and models that are files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .conftest import Cli, write_trace

HEADER = "job_id,submit_s,base_model,method,batch_size,seq_len,duration_s,length_dist,ref_gpu"
CONFIG = Path(__file__).parents[1] / "oracle" / "base" / "config.json"


def row(job_id: str, model: str = "smollm2-135m", lengths: str = "", device: str = "") -> str:
    return f"{job_id},0,{model},lora,8,64,30,{lengths},{device}"


def test_validate_says_what_simulate_says(cli: Cli, tmp_path: Path) -> None:
    """Every row at once, each with its place and the nearest name."""
    rows = (
        row("a", "llama-9-7b"),
        row("b", lengths="alpacca"),
        row("c", device="a100"),
        row("d", "no/such.json", "nope", "nope"),
    )
    path = write_trace(tmp_path / "t.csv", rows, HEADER)
    ran = [cli("trace", "validate", path), cli("simulate", "--trace", path)]
    assert [one.code for one in ran] == [2, 2]
    assert ran[0].err == ran[1].err
    found = [line.split(": ")[:2] for line in ran[0].err.removeprefix("loramux: ").splitlines()]
    places = [(2, "base_model"), (3, "length_dist"), (4, "ref_gpu")]
    places += [(5, name) for name in ("base_model", "length_dist", "ref_gpu")]
    assert found == [[f"{path}:{line}", f"column {name}"] for line, name in places]
    for nearest in ("llama-2-7b", "alpaca", "a100-80g"):
        assert nearest in ran[0].err
    listed = json.loads(cli("trace", "validate", path, "--json").out)
    assert [(p["line"], p["column"]) for p in listed["problems"]] == places


@pytest.mark.parametrize("where", ["./tiny", "tiny/config.json", "../{here}/tiny", "{absolute}/tiny", "."])
def test_a_model_is_a_file_beside_the_trace(
    cli: Cli, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any working folder; results call it what the trace calls it."""
    home = tmp_path / "home"
    (home / "tiny").mkdir(parents=True)
    shutil.copy(CONFIG, home / "tiny")
    shutil.copy(CONFIG, home)
    monkeypatch.chdir(tmp_path)
    model = where.format(here="home", absolute=home)
    path = write_trace(home / "t.csv", (row("a", model), row("b", model)), HEADER)
    assert cli("trace", "validate", path).code == 0
    ran = cli("simulate", "--trace", path, "--policy", "aspen", "--quiet", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert f",{model}," in (tmp_path / "out" / "aspen-s0" / "jobs.csv").read_text()
    sweep = cli("sweep", "--trace", path, "--policy", "fifo", "--workers", "1", "--out", tmp_path / "sweep")
    assert sweep.code == 0, sweep.err


def test_a_faulty_model_file_is_a_problem_of_its_row(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"hidden_size": -1}')
    path = write_trace(tmp_path / "t.csv", (row("a", "bad.json"),), HEADER)
    ran = cli("trace", "validate", path)
    assert ran.code == 2
    assert f"{path}:2: column base_model: 'bad.json'; " in ran.err
    assert "hidden_size" in ran.err

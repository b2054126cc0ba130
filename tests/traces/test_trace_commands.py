"""`loramux trace`: results on stdout, talk on stderr, nothing replaced unasked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from loramux_cli.trace import app
from loramux_traces import InvalidInputError, UsageError, read_trace, sample_path

runner = CliRunner()


def call(*words: str | Path) -> Result:
    """Run the command; errors of loramux go on to the wrapper that turns them into exit codes."""
    result = runner.invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_generate_writes_the_file_and_refuses_to_replace_it(tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    words = ("generate", "--kind", "poisson", "--sizes", "hyperexp", "--rho", "0.8", "--mean-s", "1.0", "--jobs", "50")
    result = call(*words, "--seed", "3", "--servers", "4", "--out", out)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "50 jobs" in result.stderr
    assert len(read_trace(out)) == 50
    first = out.read_bytes()
    with pytest.raises(UsageError, match="--force"):
        call(*words, "--out", out)
    call(*words, "--seed", "3", "--servers", "4", "--out", out, "--force")
    assert out.read_bytes() == first


def test_the_sample_is_what_its_own_command_makes(tmp_path: Path) -> None:
    words = read_trace(sample_path()).provenance.split("Made by: loramux trace ")[1].split()
    call(*words, "--out", tmp_path / "sample.csv")
    assert (tmp_path / "sample.csv").read_bytes() == sample_path().read_bytes()


def test_generate_to_stdout_and_memory_classes() -> None:
    result = call("generate", "--kind", "poisson", "--jobs", "3", "--mem-bytes", "6GiB:3,10GiB:2", "--out", "-")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("# MODELLED")
    assert lines[-1].split(",")[-1] in (str(6 * 2**30), str(10 * 2**30))


def test_parameters_are_listed() -> None:
    result = call("generate", "--help-kind", "all")
    assert result.exit_code == 0
    assert "max_duration_s" in result.stdout
    assert "burst_ratio" in result.stdout


@pytest.mark.parametrize("pair", ["rho", "=1", "nope=1", "rho=x", "jobs=5", "seed=5", "folder=x"])
def test_bad_settings(tmp_path: Path, pair: str) -> None:
    with pytest.raises(UsageError):
        call("generate", "--kind", "gavel", "--set", pair, "--out", tmp_path / "t.csv")


def test_import(tmp_path: Path, originals: Path) -> None:
    out = tmp_path / "t.jsonl"
    call("import", "--source", "philly-table", "--out", out, originals / "philly_table.csv", "--seed", "2")
    assert len(read_trace(out)) == 3
    with pytest.raises(UsageError, match="unknown"):
        call("import", "--source", "borg", "--out", tmp_path / "u.csv", out)


def test_validate(tmp_path: Path) -> None:
    good = json.loads(call("validate", sample_path(), "--json").stdout)
    assert (good["valid"], good["jobs"], good["schema_version"]) == (True, 1000, 1)
    assert "yes" in call("validate", sample_path()).stdout
    bad = tmp_path / "bad.csv"
    bad.write_text("job_id,submit_s\na,0\n")
    result = call("validate", bad, "--json")
    assert result.exit_code == 2
    report = json.loads(result.stdout)
    assert report["valid"] is False
    assert report["problems_total"] == len(report["problems"]) == 5
    assert set(report["problems"][0]) == {"file", "line", "column", "value", "allowed"}
    with pytest.raises(InvalidInputError):
        call("validate", bad)


def test_describe() -> None:
    facts = json.loads(call("describe", "--json", "--servers", "4").stdout)
    assert facts["offered_load"] == pytest.approx(0.9, rel=1e-3)
    text = call("describe", sample_path()).stdout
    assert "inter-arrival" in text
    assert "MODELLED" in text


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, loramux_cli.trace, loramux_traces.errors\n"
        "heavy = {'pydantic', 'numpy', 'scipy', 'pandas', 'yaml', 'torch', 'simpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

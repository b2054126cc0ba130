"""The README keeps its word: its Python runs, its commands run, in order, on the files it shows."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENTRY = {"loramux": "main", "simulate": "simulate_main"}


def blocks(language: str) -> list[str]:
    """Contents of the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The loramux and simulate commands of the README, in order."""
    lines = (line for block in blocks("sh") for line in block.splitlines())
    words = [shlex.split(line.removeprefix(".venv/bin/")) for line in lines]
    return [command for command in words if command[0] in (*ENTRY, "wait")]


def run(args: list[str], folder: Path) -> str:
    """Output of a command that must succeed."""
    environment = {**os.environ, "MPLBACKEND": "Agg", "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(args, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{args}\n{done.stdout}\n{done.stderr}"
    assert (done.stdout + done.stderr).strip(), f"{args} printed nothing"
    return done.stdout


def test_ten_lines_compare_a_policy_with_aspen() -> None:
    (code,) = blocks("python")
    assert sum(bool(line) for line in code.splitlines()) == 10
    mine, aspen = run([sys.executable, "-c", code], ROOT).splitlines()
    assert "LightestFirst" in mine
    assert aspen.startswith("aspen {'mean': ")


def test_commands_run_in_order(tmp_path: Path) -> None:
    (jobs,) = blocks("csv")
    (code,) = blocks("python")
    (tmp_path / "jobs.csv").write_text(jobs, encoding="utf-8")
    (tmp_path / "lightest.py").write_text(code.partition("for policy")[0], encoding="utf-8")
    shutil.copytree(ROOT / "runtime" / "examples", tmp_path / "runtime" / "examples")
    shutil.copy(ROOT / "tests" / "traces" / "data" / "philly_table.csv", tmp_path / "philly.csv")
    shown = commands()
    assert len(shown) >= 10
    background: list[subprocess.Popen[bytes]] = []
    try:
        for name, *arguments in shown:
            start = [sys.executable, "-c", f"from loramux_cli.main import {ENTRY.get(name)} as main; main()"]
            if name == "wait":
                assert background.pop().wait(120) == 0
            elif arguments[-1] == "&":
                with (tmp_path / "background").open("w") as said:
                    background.append(
                        subprocess.Popen([*start, *arguments[:-1]], cwd=tmp_path, stdout=said, stderr=said)
                    )
            elif arguments[0] == "train":  # a third of its steps will do; `run` below takes them all
                file = tmp_path / arguments[1]
                whole = file.read_text(encoding="utf-8")
                assert whole.count("steps: 120") == 1
                file.write_text(whole.replace("steps: 120", "steps: 40"), encoding="utf-8")
                run([*start, *arguments], tmp_path)
                file.write_text(whole, encoding="utf-8")
            else:
                run([*start, *arguments], tmp_path)
        assert not background
    finally:
        for process in background:  # a command has failed: the scheduler must not go on for ever
            process.terminate()
            process.wait(60)


@pytest.mark.parametrize("name", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_linked_files_exist(name: str) -> None:
    assert (ROOT / name).exists()


def test_every_command_is_in_the_table() -> None:
    from loramux_cli.main import app

    names = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    assert set(re.findall(r"^\| `loramux ([\w-]+)` \|", README, flags=re.MULTILINE)) == names


def test_the_jobs_file_it_shows_is_valid(tmp_path: Path) -> None:
    from loramux_runtime.jobs.jobs_file import read_jobs_file

    (text,) = blocks("yaml")
    file = tmp_path / "jobs.yaml"
    file.write_text(text, encoding="utf-8")
    assert [job.id for job in read_jobs_file(file).jobs] == ["alice", "bob"]

"""The READMEs keep their word: Python and commands run, in order, on the files that they show."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .waiting import finished, run_process

ROOT = Path(__file__).parents[1]
PACKAGES = ("traces", "profiles", "policies", "simulator", "runtime", "analysis", "cli")
READMES = {"root": ROOT / "README.md"} | {name: ROOT / name / "README.md" for name in PACKAGES}
PAGES = {**READMES, "contributing": ROOT / "CONTRIBUTING.md"}
ENTRY = {"loramux": "main", "simulate": "simulate_main"}


def blocks(page: Path, language: str) -> list[str]:
    """Return the contents of the fenced blocks of one language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Return the loramux and simulate commands of a README, in order."""
    lines = (line for block in blocks(page, "sh") for line in block.splitlines())
    words = [shlex.split(line.removeprefix(".venv/bin/"), comments=True) for line in lines]
    return [command for command in words if command and command[0] in (*ENTRY, "wait")]


def run(args: list[str], folder: Path) -> str:
    """Return the output of a command that must succeed and say something."""
    cache = {"MPLBACKEND": "Agg", "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = run_process(args, cwd=folder, env={**os.environ, **cache})
    assert done.returncode == 0, f"{args}\n{done.stdout}\n{done.stderr}"
    assert (done.stdout + done.stderr).strip(), f"{args} printed nothing"
    return done.stdout


def test_ten_lines_compare_a_policy_with_aspen() -> None:
    (code,) = blocks(READMES["root"], "python")
    assert sum(bool(line) for line in code.splitlines()) <= 10
    mine, aspen = run([sys.executable, "-c", code], ROOT).splitlines()
    assert "LightestFirst" in mine
    assert aspen.startswith("aspen {'mean': ")


@pytest.mark.parametrize("name", [name for name in READMES if name != "root"])
def test_python_runs(name: str) -> None:
    for code in blocks(READMES[name], "python"):
        run([sys.executable, "-c", code], ROOT)


def test_the_ten_lines_are_a_policy_file_too(tmp_path: Path) -> None:
    (code,) = blocks(READMES["root"], "python")
    whole = code.replace('"traces/', f'"{ROOT / "traces"}/')
    (tmp_path / "lightest.py").write_text(whole, encoding="utf-8")
    options = ["--policy-file", "lightest.py", "--policy", "LightestFirst", "--policy", "fifo"]
    run([sys.executable, "-m", "loramux", "simulate", *options], tmp_path)


@pytest.mark.parametrize("name", READMES)
def test_commands_run_in_order(name: str, tmp_path: Path) -> None:
    (jobs,) = blocks(READMES["root"], "csv")
    (tmp_path / "jobs.csv").write_text(jobs, encoding="utf-8")
    shutil.copytree(ROOT / "runtime" / "examples", tmp_path / "runtime" / "examples")
    shutil.copy(ROOT / "tests" / "traces" / "data" / "philly_table.csv", tmp_path / "philly.csv")
    shown = commands(READMES[name])
    assert shown
    trains = READMES["runtime"] if name == "runtime" else None
    background: list[subprocess.Popen[bytes]] = []
    try:
        for command, *arguments in shown:
            start = [sys.executable, "-c", f"from loramux_cli.main import {ENTRY.get(command)} as main; main()"]
            if command == "wait":
                assert finished(background.pop()) == 0
            elif arguments[-1] == "&":
                with (tmp_path / "background").open("w") as said:
                    background.append(
                        subprocess.Popen([*start, *arguments[:-1]], cwd=tmp_path, stdout=said, stderr=said)
                    )
            elif arguments[0] == "train" and trains is None:
                continue  # the README of the runtime trains the same file
            else:
                run([*start, *lighter(arguments, tmp_path)], tmp_path)
        assert not background
    finally:
        for process in background:  # a command has failed: the scheduler must not go on for ever
            process.terminate()
            finished(process)


def lighter(arguments: list[str], folder: Path) -> list[str]:
    """Return the arguments of a command for a tenth of the work, where it has much to do."""
    if arguments[0] == "train":
        file = folder / arguments[1]
        whole = file.read_text(encoding="utf-8")
        assert whole.count("steps: 120") == 1
        short = file.with_name("short.yaml")
        short.write_text(whole.replace("steps: 120", "steps: 12"), encoding="utf-8")
        return ["train", str(short.relative_to(folder)), *arguments[2:]]
    less = {"--time-scale": "40", "--step-scale": "0.01"}
    return [less.get(before, word) for before, word in zip(["", *arguments], arguments, strict=False)]


def links() -> list[tuple[str, str]]:
    found = []
    for name, page in PAGES.items():
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        found += [(name, link) for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text)]
    return found


@pytest.mark.parametrize(("name", "link"), links())
def test_linked_files_exist(name: str, link: str) -> None:
    assert (PAGES[name].parent / link).exists()


def named_files() -> list[tuple[str, str]]:
    """Return the Python files that walks and tables name in backquotes, with their page."""
    found = []
    for name, page in PAGES.items():
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        found += [(name, file) for file in sorted(set(re.findall(r"`([\w./]+\.py)`", text)))]
    return found


@pytest.mark.parametrize(("name", "file"), named_files())
def test_files_that_are_named_exist(name: str, file: str) -> None:
    """By their path from the repository, from the page's folder, or from a room of its package."""
    folder = PAGES[name].parent
    near = [ROOT / file, folder / file, *ROOT.glob(f"*/{file}"), *ROOT.glob(f"*/loramux*/**/{file}")]
    assert any(path.is_file() for path in near)


def test_every_command_is_in_the_table() -> None:
    from loramux_cli.main import app

    names = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    text = READMES["cli"].read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `loramux ([\w-]+)` \|", text, flags=re.MULTILINE)) == names


def test_the_jobs_file_it_shows_is_valid(tmp_path: Path) -> None:
    from loramux_runtime.jobs.jobs_file import read_jobs_file

    (text,) = blocks(READMES["runtime"], "yaml")
    file = tmp_path / "jobs.yaml"
    file.write_text(text, encoding="utf-8")
    assert [job.id for job in read_jobs_file(file).jobs] == ["alice", "bob"]


def test_the_root_readme_is_short() -> None:
    assert len(READMES["root"].read_text(encoding="utf-8").splitlines()) <= 140

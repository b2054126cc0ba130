"""One command at a time in a folder, and no folder for a command that did nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loramux_traces.errors import StateError
from loramux_traces.locking import LOCK, owned

from .conftest import Cli, write_trace

HOLDER = """
import sys
from pathlib import Path
from loramux_traces.locking import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds tmp_path / "out"."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("command", ["sweep", "simulate"])
def test_the_second_command_names_the_first(
    cli: Cli, trace: Path, tmp_path: Path, holder: subprocess.Popen[str], command: str, force: tuple[str, ...]
) -> None:
    arguments = (command, "--trace", trace, "--policy", "fifo", "--out", tmp_path / "out", *force)
    ran = cli(*arguments)
    assert ran.code == 6
    assert f"process {holder.pid} is writing into it" in ran.err
    assert {file.name for file in (tmp_path / "out").iterdir()} == {LOCK}
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "out" / LOCK).exists()  # and locks nobody out
    again = cli(*arguments)
    assert again.code == 0, again.err
    assert not (tmp_path / "out" / LOCK).exists()


def test_a_folder_is_given_back(tmp_path: Path) -> None:
    with owned(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).read_text() == f"{os.getpid()}\n"
        with pytest.raises(StateError, match=f"process {os.getpid()}"), owned(tmp_path / "a" / "b"):
            pass
    assert not (tmp_path / "a").exists()
    with owned(tmp_path / "a"):
        (tmp_path / "a" / "kept").touch()
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["kept"]


@pytest.mark.parametrize(
    "arguments",
    [("--load", "0"), ("--load", "-1"), ("--load", "0.5", "--load", "0.5"), ("--load", "0.8", "--trace", "burst.csv")],
    ids=" ".join,
)
def test_a_usage_error_leaves_no_folder(
    cli: Cli, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """The last one is found out only when the first run is made.

    All its jobs are submitted at once.
    """
    monkeypatch.chdir(tmp_path)
    write_trace(tmp_path / "burst.csv", tuple(f"j{i},0,smollm2-135m,lora,4,64,10,0" for i in range(3)))
    own = () if "--trace" in arguments else ("--trace", trace)
    for workers in ("1", "2"):
        ran = cli(
            "sweep", *own, "--policy", "fifo", "--policy", "srtf", "--workers", workers, *arguments, "--out", "new"
        )
        assert ran.code == 2, ran.err
        assert not (tmp_path / "new").exists()


def test_simulate_offers_what_it_has(cli: Cli, trace: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    offers = {
        command: cli(command, "--trace", trace, "--out", tmp_path / "full").err for command in ("simulate", "sweep")
    }
    assert "--resume" not in offers["simulate"]
    assert "--resume" in offers["sweep"]

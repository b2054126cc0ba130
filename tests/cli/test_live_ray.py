"""`loramux run --engine ray` as users have it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from loramux_runtime.live.settings import EngineChoice
from loramux_traces.errors import UsageError

from ..waiting import finished, until
from .test_live import folder, loramux, start, status, wait_for

__all__ = ["folder"]
WITHOUT: dict[str, Any] = {"devices": None, "address": None, "device": "auto", "threads": None}


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'loramux\[ray\]'"):
        EngineChoice(engine="ray", **WITHOUT)
    EngineChoice(engine="local", **WITHOUT)


@pytest.mark.parametrize(
    "options", [["--engine", "slurm"], ["--devices", "2"], ["--ray-address", "10.0.0.1:6379"], ["--devices", "0"]]
)
def test_options_that_do_not_go_together(options: list[str], tmp_path: Path) -> None:
    ran = loramux("run", "--state", "state", "--base", "llama-7b", *options, cwd=tmp_path)
    assert ran.returncode == 2 and ran.stderr and "Traceback" not in ran.stderr
    assert not (tmp_path / "state").exists()


def test_ray_is_imported_only_when_asked_for() -> None:
    code = (
        "import sys, loramux_cli.live, loramux_runtime.live.opening, loramux_cli.sweep, loramux_runtime.live.service,"
        " loramux_runtime.live.drive.ray_pool, loramux_runtime.live.drive.ray_cluster; assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_a_run_on_actors_is_stopped_and_goes_on_without_them(folder: Path) -> None:
    before = set(Path("/tmp").glob("loramux-ray-*"))
    assert loramux("run", "--state", "state", "--base", "jobs.yaml", "--exit-when-idle", cwd=folder).returncode == 0
    assert loramux("submit", "--state", "state", "jobs.yaml", cwd=folder).returncode == 0
    options = ("--engine", "ray", "--devices", "2", "--threads", "1", "--checkpoint-every", "0.2", "--device", "cpu")
    running = start(*options, cwd=folder)
    wait_for(running, folder, lambda jobs: jobs["short"]["state"] == "COMPLETED" and jobs["long"]["step"] > 50)
    during = set(Path("/tmp").glob("loramux-ray-*")) - before
    running.send_signal(signal.SIGTERM)
    assert finished(running) == 143
    assert len(during) == 1 and not set(Path("/tmp").glob("loramux-ray-*")) & during
    until(lambda: not [name for name in _command_lines() if str(next(iter(during))) in name])
    said = (folder / "said").read_text()
    assert "2 x cpu on 1 node" in said and "Traceback" not in said
    left_at = status(folder)["jobs"][1]["step"]
    running = start(cwd=folder)
    wait_for(running, folder, lambda jobs: jobs["long"]["step"] > left_at + 20)
    running.send_signal(signal.SIGTERM)
    assert finished(running) == 143


def _command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in found if f" {os.getpid()} " not in line]

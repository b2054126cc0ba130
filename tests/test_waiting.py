"""Waits end with what they wait for.

A process that sleeps, spins or has ended is told from one that is slow.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from . import waiting
from .waiting import Quiet, communicated, cpu_s, finished, run_process, size_of, until, worked


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_a_run_gives_what_was_printed() -> None:
    done = run_process(
        python("import sys; print(sys.stdin.read()); sys.stderr.write('e'); sys.exit(3)"), text_in="given"
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "given\n", "e")


def test_who_sleeps_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "QUIET_S", 0.2)
    with pytest.raises(Quiet, match="nothing has moved"), subprocess.Popen(python("input()"), stdin=-1) as process:
        finished(process)
    assert process.returncode == -9
    with pytest.raises(Quiet, match="nothing has moved"):
        run_process(python("import time; time.sleep(1000)"))


def test_who_spins_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST_CPU_S", 0.3)
    with subprocess.Popen(python("while True: pass"), stdout=-1, text=True) as process:
        with pytest.raises(Quiet, match="processor time and no end"):
            communicated(process)
        process.wait()
    assert process.returncode == -9


def test_who_moves_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(waiting, "QUIET_S", 0.7)
    file = tmp_path / "file"
    calls = iter(range(20))

    def grown() -> bool:
        file.write_text("x" * next(calls))
        return file.stat().st_size == 19

    # all that takes longer than what is given up when nothing moves
    until(grown, progress=size_of(file), poll_s=0.05)
    monkeypatch.setattr(waiting, "IDLE_CPU_S", 0.05)
    with subprocess.Popen(python("while True: pass")) as process:
        worked(process, 0.2)
        process.kill()


def test_a_process_that_has_ended_brings_nothing_more() -> None:
    with subprocess.Popen(python("pass")) as process, pytest.raises(AssertionError, match="has ended"):
        until(lambda: False, process=process)


def test_processor_time_is_that_of_the_whole_family() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', 'while True: pass'])"
    with subprocess.Popen(python(code), start_new_session=True) as process:
        worked(process, 0.3)  # by its child
        os.killpg(process.pid, signal.SIGKILL)
    assert cpu_s(process.pid) is None

"""The supervisor: it starts a scheduler again that died or hangs, and knows when to give up."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from loramux_runtime.live import supervisor
from loramux_runtime.live.deaths import OomKills, how_died
from loramux_runtime.live.state.marker import Marker, read_marker
from loramux_runtime.live.supervisor import supervise

from . import serving
from .serving import curves, first, jobs, submit


@pytest.mark.slow
def test_a_supervisor_starts_it_again(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 3))
    order = {"state": str(tmp_path / "state"), "poison": "job01"}
    said: list[str] = []
    command = [sys.executable, serving.__file__, json.dumps(order)]
    assert supervise(command, tmp_path / "state", hang_s=60.0, say=said.append, poll_s=0.05) == 0
    assert [text for text in said if "killed by signal 9; starting it again" in text] == said and len(said) == 3
    assert [row["state"] for row in store.jobs()] == ["COMPLETED", "FAILED_CRASHED", "COMPLETED"]


@pytest.mark.slow
def test_a_hung_step_is_ended(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 2))
    order = {"state": str(tmp_path / "state"), "hang": "job00"}
    said: list[str] = []
    command = [sys.executable, serving.__file__, json.dumps(order)]
    assert supervise(command, tmp_path / "state", hang_s=2.0, say=said.append, poll_s=0.05) == 0
    assert sum("no sign of life for 2 s (in a step of" in text for text in said) == 2
    assert [row["state"] for row in store.jobs()] == ["FAILED_CRASHED", "COMPLETED"]


def test_a_policy_that_hangs_is_killed_and_replaced(tmp_path: Path, whole: dict[str, Any]) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 3))
    order = {"state": str(tmp_path / "state"), "sleepy": True}
    said: list[str] = []
    command = [sys.executable, serving.__file__, json.dumps(order)]
    assert supervise(command, tmp_path / "state", hang_s=3.0, say=said.append, poll_s=0.005) == 0
    assert "no sign of life for 3 s (the policy was deciding)" in said[0] and len(said) == 2
    assert curves(store) == first(whole, 3)
    assert all(row["crashes"] == 0 for row in store.jobs())


@pytest.mark.slow
def test_a_policy_that_ends_its_process_is_replaced(tmp_path: Path, whole: dict[str, Any]) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 2))
    order = {"state": str(tmp_path / "state"), "deadly": True}
    said: list[str] = []
    command = [sys.executable, serving.__file__, json.dumps(order)]
    assert supervise(command, tmp_path / "state", hang_s=60.0, say=said.append, poll_s=0.05) == 0
    assert said == ["the scheduler's process ended with 1; starting it again"] * supervisor.DECIDING
    assert curves(store) == first(whole, 2) and store.fact("policy_errors") == 1


def test_a_process_that_never_begins_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RESTARTS", 1)
    monkeypatch.setattr(supervisor, "START_S", 0.2)
    said: list[str] = []
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    assert supervise(command, tmp_path, hang_s=0.1, say=said.append, poll_s=0.02) == 1
    assert said[0].startswith("nothing has begun in 0 s") and "giving up" in said[-1]


def test_no_end_of_restarts_is_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RESTARTS", 2)
    said: list[str] = []
    command = [sys.executable, "-c", "import os; os.abort()"]
    assert supervise(command, tmp_path, hang_s=60.0, say=said.append, poll_s=0.02) == 1
    assert "giving up" in said[-1] and len(said) == 3


def test_a_signal_between_two_processes_is_heard(tmp_path: Path) -> None:
    """(Found by the soak: the next process was started, and ran for ever.)."""
    command = [sys.executable, "-c", "import os; os.abort()"]
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        say = lambda text, number=number: os.kill(os.getpid(), number)
        assert supervise(command, tmp_path, hang_s=60.0, say=say, poll_s=0.02) == code


def test_exit_codes_that_are_meant_are_passed_on(tmp_path: Path) -> None:
    for code in (0, 2, 3, 4, 5, 6, 130, 143):
        command = [sys.executable, "-c", f"raise SystemExit({code})"]
        assert supervise(command, tmp_path, hang_s=60.0, say=print, poll_s=0.02) == code


def test_the_marker_survives_and_longer_texts_leave_nothing(tmp_path: Path) -> None:
    assert read_marker(tmp_path) is None
    marker = Marker(tmp_path)
    marker.set("step", {f"job{i}": i + 0.5 for i in range(50)})
    marker.set("step", {"a": 2.0})
    before = time.monotonic()
    doing = read_marker(tmp_path)
    assert doing is not None and doing.phase == "step" and doing.jobs == {"a": 2.0} and doing.since_s <= before
    marker.close()
    (tmp_path / "doing").write_bytes(b'["step", nonsense')
    assert read_marker(tmp_path) is None


def test_a_clock_that_jumps_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was asleep: the process has had no time to show that it is there."""
    from loramux_runtime.live.state import marker

    (tmp_path / "state").mkdir()
    began_s, jumped, real = time.monotonic(), [0], time.monotonic
    note = Marker(tmp_path / "state")
    note.set("step", {"a": 1.0})

    def read(folder: Path) -> marker.Doing | None:
        jumped[0] += 1
        if jumped[0] % 3 == 0:
            note.set("step", {"a": float(jumped[0])})
        return read_marker(folder)

    monkeypatch.setattr(supervisor, "read_marker", read)
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: real() + (9e9 if jumped[0] % 3 == 2 else 0.0))
    said: list[str] = []
    command = [sys.executable, "-c", "import time; time.sleep(1)"]
    assert supervise(command, tmp_path / "state", hang_s=20.0, say=said.append, poll_s=0.02) == 0
    assert said == [] and jumped[0] > 10 and real() - began_s < 100


def test_how_a_process_died_says_whether_its_work_is_to_blame(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 5\noom_kill 3\n")
    oom = OomKills(vmstat)
    assert not oom.more()
    vmstat.write_text("nr_free_pages 5\noom_kill 4\n")
    assert oom.more() and not OomKills(tmp_path / "nothing").more()
    kinds = {(code, memory): how_died(code, hung=False, oom_kill=memory) for code in (-9, -11, 1) for memory in (0, 1)}
    assert kinds == {
        (-9, 0): "killed", (-9, 1): "memory", (-11, 0): "crashed", (-11, 1): "crashed", (1, 0): "crashed",
        (1, 1): "crashed",
    }  # fmt: skip
    assert how_died(-9, hung=True, oom_kill=False) == "hung"

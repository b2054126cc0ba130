"""What outlives a scheduler that was stopped or killed, and what the next one must not find."""

from __future__ import annotations

from pathlib import Path

import pytest

from loramux_runtime.live.state.marker import Marker

from .asking import states, stop_after
from .serving import jobs, play, submit


def test_a_drain_outlives_a_killed_process(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 2))
    store.set_facts(draining=True)
    marker = Marker(store.folder)
    marker.set("step", {})
    marker.close()
    play(store, "fifo", exit_when_idle=False)
    assert set(states(store).values()) == {"QUEUED"}
    play(store, "fifo")  # and it has drained: the next one is a new one
    assert set(states(store).values()) == {"COMPLETED"}


def test_service_is_not_lost_at_a_restart(tmp_path: Path) -> None:
    stopped = submit(tmp_path / "stopped", jobs(tmp_path, 1, steps=12))
    stop_after(stopped, 7)
    play(stopped, "fifo")
    straight = submit(tmp_path / "straight", jobs(tmp_path, 1, steps=12))
    play(straight, "fifo")
    assert stopped.job("job00")["attained_s"] == pytest.approx(straight.job("job00")["attained_s"], rel=1e-9)


def test_nobody_is_busy_between_two_processes(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 1, steps=12))
    stop_after(store, 5)
    last = [residents for _, _, _, residents, _ in store.samples()][-1]
    assert last == 0

"""Training curves for TensorBoard: what is in the files, and how they go on after a restart."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from loramux_runtime.live.watch import tensorboard as module
from loramux_runtime.live.watch.tensorboard import RETRY_S, TensorBoardLog
from loramux_traces.errors import UsageError


def row(step: int, loss: float | None, **given: Any) -> dict[str, Any]:
    """A training record."""
    return {
        "t_s": step / 10,
        "job_id": "a",
        "step": step,
        "total_steps": 100,
        "loss": loss,
        "aux_loss": 0.0,
        "grad_norm": 1.5,
        "lr": 1e-4,
        "tokens": 100 * step,
        "skipped": loss is None,
        **given,
    }


class Clock:
    """Seconds as they are set."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """A scalar as TensorBoard reads it: (step, value)."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    if tag not in events.Tags()["scalars"]:
        return []
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.fixture
def board() -> None:
    pytest.importorskip("tensorboard.compat.proto.event_pb2")


def test_without_tensorboard_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # importing it now raises
    with pytest.raises(UsageError, match=r"pip install 'loramux\[tensorboard\]'"):
        TensorBoardLog(tmp_path)


def test_a_curve_is_what_was_recorded(board: None, tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    for step in (1, 2, 3, 4):
        log.record("a", row(step, 2.0 / step, active_experts=1.75, eval_loss=3.0 if step < 4 else 2.5))
    log.record("b", row(1, None, grad_norm=float("inf")))
    # nothing is closed yet: what a killed process leaves
    assert curve(tmp_path / "a", "train/loss") == [(1, 2.0), (2, 1.0), (3, pytest.approx(2 / 3)), (4, 0.5)]
    assert curve(tmp_path / "a", "train/tokens") == [(1, 100), (2, 200), (3, 300), (4, 400)]
    assert curve(tmp_path / "a", "train/active_experts")[0] == (1, 1.75)
    assert curve(tmp_path / "a", "eval/loss") == [(1, 3.0), (4, 2.5)]  # where it has changed
    assert curve(tmp_path / "b", "train/loss") == [] and curve(tmp_path / "b", "train/grad_norm") == []
    assert curve(tmp_path / "b", "train/skipped") == [(1, 1.0)]
    log.close()


def test_after_a_restart_no_step_is_there_twice(board: None, tmp_path: Path) -> None:
    clock = Clock()
    first = TensorBoardLog(tmp_path, clock_s=clock)
    for step in range(1, 8):
        first.record("a", row(step, float(step)))
    first.close()
    clock.now_s -= 3600  # the clock was set back meanwhile
    second = TensorBoardLog(tmp_path, clock_s=clock)
    for step in range(5, 7):  # from the checkpoint of step 4; step 7 has not come again yet
        second.record("a", row(step, float(10 * step)))
    assert curve(tmp_path / "a", "train/loss") == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50), (6, 60)]
    second.record("a", row(3, 333.0))  # it goes back within the process
    second.record("a", row(4, 444.0))
    assert curve(tmp_path / "a", "train/loss") == [(1, 1), (2, 2), (3, 333), (4, 444)]
    second.finish("a")
    second.record("a", row(5, 555.0))
    second.close()
    assert curve(tmp_path / "a", "train/loss") == [(1, 1), (2, 2), (3, 333), (4, 444), (5, 555)]
    assert len(list((tmp_path / "a").iterdir())) == 3


def test_a_torn_record_is_passed_over(board: None, tmp_path: Path) -> None:
    first = TensorBoardLog(tmp_path)
    for step in (1, 2, 3):
        first.record("a", row(step, float(step)))
    (file,) = (tmp_path / "a").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    second = TensorBoardLog(tmp_path)
    second.record("a", row(3, 30.0))
    assert curve(tmp_path / "a", "train/loss") == [(1, 1), (2, 2), (3, 30)]
    first.close()
    second.close()


def test_files_are_closed_with_the_last_step_and_beyond_the_limit(
    board: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_OPEN", 2)
    log = TensorBoardLog(tmp_path)
    for step in (1, 2):
        for job_id in ("a", "b", "c"):  # each closes another one
            log.record(job_id, row(step, float(step)))
            assert len(log._open) <= 2
    assert curve(tmp_path / "b", "train/loss") == [(1, 1), (2, 2)]
    log.record("c", row(100, 0.1))
    assert set(log._open) == {"b"}
    log.close()
    assert not log._open


def test_a_failure_costs_rows_and_not_the_run(board: None, tmp_path: Path) -> None:
    clock = Clock()
    log = TensorBoardLog(tmp_path, clock_s=clock)
    (tmp_path / "a").write_text("in the way")
    log.record("a", row(1, 1.0))
    assert log.problem is not None and str(tmp_path / "a") in log.problem
    (tmp_path / "a").unlink()
    log.record("a", row(2, 2.0))  # it waits before it tries again
    assert not (tmp_path / "a").exists()
    clock.now_s += RETRY_S
    log.record("a", row(3, 3.0))
    assert curve(tmp_path / "a", "train/loss") == [(3, 3)]
    log.close()


@pytest.mark.parametrize("job_id", ["../a", "", "a/b", ".", "a" * 65])
def test_a_job_id_stays_in_the_folder(board: None, job_id: str, tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path / "logs")
    with pytest.raises(ValueError, match="no job id"):
        log.record(job_id, row(1, 1.0))


def test_no_link_is_followed(board: None, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    log = TensorBoardLog(tmp_path)
    log.record("a", row(1, 1.0))
    assert log.problem is not None and "link" in log.problem
    assert not list((tmp_path / "elsewhere").iterdir())

"""States on their way to the workers of a pool: made beside steps, and nobody else's trouble."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from loramux_runtime.live.drive import loads
from loramux_runtime.live.drive.pool import InProcessPool, WorkerDied
from loramux_runtime.live.drive.worker import DeviceWorker, JobOrder

from . import serving
from .pooling import Bits, bits, in_process, play, same
from .serving import curves, jobs, submit


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> Bits:
    """Curves and adapters of the jobs below on one device."""
    folder = tmp_path_factory.mktemp("one")
    store = submit(folder / "state", jobs(folder, 6))
    assert serving.play(store).failed == 0
    return bits(store)


class Panic(BaseException):
    """What pyo3 raises is no Exception either."""


def at(monkeypatch: pytest.MonkeyPatch, job_id: str, error: BaseException) -> None:
    """Have the making of the job's state raise the error."""
    make = DeviceWorker._make

    def failing(self: DeviceWorker, order: JobOrder) -> Any:
        if order.config["id"] == job_id:
            raise error
        return make(self, order)

    monkeypatch.setattr(DeviceWorker, "_make", failing)


@pytest.mark.parametrize(
    ("beside", "error", "state"),
    [
        (False, MemoryError("no room"), "FAILED_OOM"),
        (True, ValueError("not a state"), "FAILED_CRASHED"),
        (True, Panic("panicked"), "FAILED_CRASHED"),
    ],
)
def test_a_state_that_a_worker_cannot_make_is_its_jobs_trouble(
    beside: bool, error: BaseException, state: str, tmp_path: Path, one_device: Bits, monkeypatch: pytest.MonkeyPatch
) -> None:
    if beside:
        monkeypatch.setattr(loads, "AT_ONCE_BYTES", -1)
    at(monkeypatch, "job02", error)
    pool = in_process(2)
    store = submit(tmp_path / "state", jobs(tmp_path, 6))
    assert play(store, pool, max_resident=2).failed == 1
    row = store.job("job02")
    assert row["state"] == state and str(error) in row["reason"]
    mine, theirs = curves(store), dict(one_device[0])
    assert not mine.pop("job02") and theirs.pop("job02") and mine == theirs
    assert pool.restarts == 0 and not any(w._jobs or w._making for w in pool.workers if w is not None)


def test_steps_go_on_while_a_state_is_made(tmp_path: Path, one_device: Bits, monkeypatch: pytest.MonkeyPatch) -> None:
    """job05 is made only when another job has trained three steps meanwhile on the same worker."""
    monkeypatch.setattr(loads, "AT_ONCE_BYTES", -1)
    make, steps, trained = DeviceWorker._make, [0], threading.Event()

    def slow(self: DeviceWorker, order: JobOrder) -> Any:
        if order.config["id"] == "job05":
            assert trained.wait(60.0)
        return make(self, order)

    class Counting(InProcessPool):
        def launch(self, worker: int, entries: Any) -> None:
            super().launch(worker, entries)
            steps[0] += "job05" not in dict(entries)
            if steps[0] >= 3:
                trained.set()

    monkeypatch.setattr(DeviceWorker, "_make", slow)
    store = submit(tmp_path / "state", jobs(tmp_path, 6))
    assert play(store, Counting(1, in_process(1)._make), max_resident=6).failed == 0
    same(store, one_device)
    assert trained.is_set()


@pytest.mark.parametrize("beside", [False, True])
def test_a_state_that_kills_its_worker_ends_up_alone_and_fails(
    beside: bool, tmp_path: Path, one_device: Bits, monkeypatch: pytest.MonkeyPatch
) -> None:
    if beside:
        monkeypatch.setattr(loads, "AT_ONCE_BYTES", -1)

    class Dying(InProcessPool):
        def tell(self, worker: int, call: str, *arguments: Any) -> None:
            super().tell(worker, call, *arguments)
            if call == "prepare" and arguments[0].config["id"] == "job02":
                self.kill(worker)

        def ask(self, worker: int, call: str, *arguments: Any) -> Any:
            if call == "load" and isinstance(arguments[0], JobOrder) and arguments[0].config["id"] == "job02":
                self.kill(worker)
                raise WorkerDied("killed")
            return super().ask(worker, call, *arguments)

    pool = Dying(2, in_process(1)._make)
    store = submit(tmp_path / "state", jobs(tmp_path, 6))
    assert play(store, pool, "fifo", max_resident=2).failed == 1
    row = store.job("job02")
    assert row["state"] == "FAILED_CRASHED" and "again and again" in row["reason"]
    mine, theirs = curves(store), dict(one_device[0])
    assert not mine.pop("job02") and theirs.pop("job02") and mine == theirs
    assert pool.restarts == 3

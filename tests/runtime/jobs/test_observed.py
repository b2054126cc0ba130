"""The executor's own steps against the fitted profile."""

from __future__ import annotations

import numpy as np
import pytest

from loramux_profiles.devices import load_device
from loramux_profiles.fitted import FittedModel
from loramux_profiles.planned import PlannedMemory
from loramux_profiles.step_point import AdapterPoint, JobPoint, StepPoint
from loramux_runtime.fused.packing import MicroBatch
from loramux_runtime.train.observer import Observer

ADAPTER = AdapterPoint(method="lora", rank=8)


@pytest.fixture(scope="module")
def fitted() -> FittedModel:
    found = load_device("cpu/llama-tiny").fitted
    assert found is not None
    return found


def batch(n: int) -> MicroBatch:
    row = np.arange(n, dtype=np.int64)
    return MicroBatch(tokens=(row,), labels=(row,), samples=(0,))


def point(n: int) -> StepPoint:
    return StepPoint(jobs=(JobPoint(adapter=ADAPTER, lengths=(n,), labels=n - 1),))


def test_a_slow_machine_is_noticed(fitted: FittedModel) -> None:
    observer = Observer(fitted)
    for i in range(60):
        n = 20 + 3 * i
        seconds = 1.3 * fitted.time.seconds(point(n))
        assert observer.see([(ADAPTER, batch(n))], recompute=False, seconds=seconds, dynamic_bytes=None) is None
    report = observer.report()
    assert report["steps"] == 60
    assert report["time_factor"] == pytest.approx(1.3, rel=0.05)
    assert report["time_mape"] == pytest.approx(0.3 / 1.3, rel=1e-6)
    assert report["time_mape_refitted"] < report["time_mape"] / 2
    assert "memory_mape" not in report


def test_the_bound_follows_what_is_measured(fitted: FittedModel) -> None:
    observer = Observer(fitted)
    memory = PlannedMemory(
        fitted.shape, dtype=fitted.dtype, exact=fitted.exact, scale=fitted.scale, offset_bytes=fitted.offset_bytes
    )
    scale = 1.0 + fitted.margin
    for i in range(80):
        expected = memory.point_bytes(point(20 + i))
        moved = observer.see([(ADAPTER, batch(20 + i))], recompute=False, seconds=0.1, dynamic_bytes=1.2 * expected)
        scale = scale if moved is None else moved
    assert 1.2 <= scale <= 1.4
    report = observer.report()
    assert report["memory_factor"] == pytest.approx(1.2, rel=0.05)
    assert 1 <= report["above_bound"] < 40  # those before it had followed


def test_nothing_seen_nothing_said(fitted: FittedModel) -> None:
    assert Observer(fitted).report() == {"steps": 0}

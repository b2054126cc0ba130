"""The steps of the GPU suite's profile, and what the part does of steps that fail."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu import profile as part
from gpu.points import FILE, drawn_points, load_points, points_text, shrunk
from gpu.store import Store
from loramux_profiles.step_point import METHODS, StepPoint
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.profiler import measure
from loramux_runtime.profiler.journal import read_journal

CPU = torch.device("cpu")


def test_the_file_is_what_is_drawn() -> None:
    """`python -m gpu.points` writes it again."""
    assert FILE.read_text(encoding="utf-8") == points_text(drawn_points())
    assert load_points() == drawn_points()
    assert FILE.stat().st_size < 150_000


@pytest.mark.parametrize("n", [30, 152])
def test_every_prefix_covers_the_grid(n: int) -> None:
    points = load_points()[:n]
    assert len(set(points)) == n
    jobs = [job for point in points for job in point.jobs]
    assert set(Counter(job.adapter.method for job in jobs)) == set(METHODS)
    assert {len(point.jobs) for point in points} == set(range(1, 9))
    assert {point.recompute for point in points} == {True, False}
    assert {job.adapter.rank for job in jobs} == {4, 8, 16, 32, 64}
    assert min(point.tokens for point in points) < 200
    assert 7_000 < max(point.tokens for point in points) <= 16_384
    assert all(point.tokens >= 64 for point in points)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[StepPoint]:
    monkeypatch.setattr(part, "TINY_POINTS", 5)
    monkeypatch.setattr(part, "sample_transfers", lambda *_: {"stands": "for them"})
    return [shrunk(point) for point in load_points()[:5]]


def run(out: Path, *, left: float = 1000.0) -> Store:
    store = Store(out / "results.jsonl")
    part.profile(store, out, CPU, lambda: left, tiny=True)
    return store


def test_it_goes_on_past_steps_without_memory_and_past_faults(
    few: list[StepPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak(model: FusedModel, point: StepPoint, limit_bytes: float | None) -> dict[str, Any]:
        if point == few[1]:
            raise RuntimeError("a fault of this step")
        if point == few[3]:
            return {"censored": True, "known": 1000}
        return {"dynamic": 1, "state": 1, "total": 2}

    monkeypatch.setattr(measure, "peak", peak)
    rows = run(tmp_path).rows
    assert [row["key"] for row in rows] == ["profile llama-7b failed 1", "profile llama-7b complete"]
    assert rows[0]["error"] == "RuntimeError: a fault of this step"
    assert {key: rows[1][key] for key in ("points", "timed", "censored")} == {"points": 4, "timed": 3, "censored": 1}
    content = read_journal(tmp_path / "profile-llama-7b.jsonl")
    assert [one.point for one in content.found] == [few[0], few[2], few[3], few[4]]
    assert content.notes["transfers"] == {"stands": "for them"}
    assert len(run(tmp_path).rows) == 2  # nothing is left to do


def test_a_fault_while_steps_are_timed_ends_their_block_only(
    few: list[StepPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: measure.Timed) -> float:
        raise RuntimeError("a fault")

    monkeypatch.setattr(measure, "peak", lambda *_: {"dynamic": 1, "state": 1, "total": 2})
    monkeypatch.setattr(part, "BLOCK", 3)
    monkeypatch.setattr(measure.Timed, "sample", broken)
    keys = [row["key"] for row in run(tmp_path).rows]
    assert keys == [*(f"profile llama-7b failed {i}" for i in range(5)), "profile llama-7b complete"]


def test_it_ends_in_time(few: list[StepPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "results.jsonl")
    monkeypatch.setattr(part, "load", lambda *_, **__: pytest.fail("no model is built for 59 seconds"))
    part.profile(store, tmp_path, CPU, lambda: 59.0, tiny=False)
    assert store.rows == []


def test_a_journal_of_something_else_is_left_alone(few: list[StepPoint], tmp_path: Path) -> None:
    journal = tmp_path / "profile-llama-7b.jsonl"
    journal.write_text('{"identity": {"model": "another"}}\n')
    (row,) = run(tmp_path).rows
    assert row["key"] == "profile llama-7b 0" and "--force" in row["error"]
    assert journal.read_text() == '{"identity": {"model": "another"}}\n'

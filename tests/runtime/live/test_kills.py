"""SIGKILL at seeded points of a ten-job run.

Nothing is lost, nothing runs twice, every curve is bit-equal.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loramux_runtime.live.state.store import Store
from loramux_runtime.train.faults import FaultPlan

from .serving import curves, jobs, play, submit
from .zygote import Zygote

POINTS: tuple[tuple[str, str | None], ...] = (
    ("step", None),
    *(("checkpoint", stage) for stage in ("begin", "tensors", "state", "manifest", "synced", "renamed", "pruned")),
    ("commit", "before"),
    ("commit", "after"),
)
"""Fault point and stage."""
Whole = tuple[dict[str, Any], dict[str, str], Counter[tuple[str, str | None]]]


def adapters(state: Path) -> dict[str, str]:
    """Digest of every adapter that a run has left."""
    return {
        str(file.relative_to(state)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((state / "adapters").rglob("*.safetensors"))
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Curves and adapters of a run that nobody disturbed, and how often it came by each point."""
    folder = tmp_path_factory.mktemp("whole")
    store = submit(folder / "state", jobs(folder, 10))
    often: Counter[tuple[str, str | None]] = Counter()

    def count(point: str, facts: dict[str, Any]) -> None:
        often[point, facts.get("stage")] += 1

    assert play(store, faults=FaultPlan(step=count, checkpoint=count, commit=count)).failed == 0
    found = curves(store)
    assert len(found) == 10 and all(found.values())
    assert all(often[point] > 3 for point in POINTS), often
    return found, adapters(store.folder), often


def kills(seed: int, often: Counter[tuple[str, str | None]]) -> list[dict[str, Any]]:
    """One to three orders that end in a kill, the first for certain."""
    draw = random.Random(seed)
    orders: list[dict[str, Any]] = []
    for _ in range(draw.randint(1, 3)):
        point, stage = draw.choice(POINTS)
        orders.append({"kill": [point, stage, draw.randint(1, max(1, often[point, stage] // 2))]})
    if draw.random() < 0.3:
        orders.append({"after_s": draw.uniform(0.1, 1.5)})
    return orders


def check(seed: int, tmp_path: Path, zygote: Zygote, whole: Whole) -> int:
    """A run with that seed's kills; how many of them really killed."""
    store = submit(tmp_path / "state", jobs(tmp_path, 10))
    store.close()
    killed = 0
    for order in kills(seed, whole[2]):
        code = zygote.serve(tmp_path / "state", **order)
        assert code in (0, -9)
        killed += code == -9
    assert zygote.serve(tmp_path / "state") == 0
    store = Store(tmp_path / "state")
    assert {row["state"] for row in store.jobs()} == {"COMPLETED"}
    assert curves(store) == whole[0]
    assert adapters(store.folder) == whole[1]
    ends = [event["job_id"] for event in store.events() if event["event"] == "finish"]
    assert sorted(ends) == sorted(whole[0])
    assert not any((store.folder / "checkpoints").rglob("*"))
    return killed


@pytest.mark.parametrize("seed", range(2))
def test_killed_runs_end_like_whole_ones(seed: int, tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    assert check(seed, tmp_path, zygote, whole) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
def test_many_killed_runs_end_like_whole_ones(
    seed: int, tmp_path: Path, zygote: Zygote, whole: Whole, record_property: Callable[[str, object], None]
) -> None:
    record_property("kills", check(seed, tmp_path, zygote, whole))  # for --junitxml

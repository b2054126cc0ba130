"""Jobs that kill or hang the process: found out, isolated, ended.

The others end as if they had been alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loramux_runtime.jobs.saving import Saving
from loramux_runtime.live.deaths import RESTARTED
from loramux_runtime.live.state.marker import Marker
from loramux_runtime.train.faults import FaultPlan

from .asking import states
from .serving import curves, jobs, play, submit
from .zygote import Zygote


def test_a_job_that_kills_the_process_is_isolated_and_fails(tmp_path: Path, zygote: Zygote) -> None:
    found = jobs(tmp_path, 4)
    store = submit(tmp_path / "state", found)
    codes = [zygote.serve(tmp_path / "state", poison="job02") for _ in range(4)]
    assert codes == [-9, -9, -9, 0]  # together, together, alone, and then no more
    assert states(store) == {
        "job00": "COMPLETED",
        "job01": "COMPLETED",
        "job02": "FAILED_CRASHED",
        "job03": "COMPLETED",
    }
    assert "again and again in its step 1" in store.job("job02")["reason"]
    whole = submit(tmp_path / "whole", [job for job in found if job["id"] != "job02"])
    play(whole)
    assert {k: v for k, v in curves(store).items() if k != "job02"} == curves(whole)


def test_kills_that_come_anywhere_make_no_suspect(tmp_path: Path, zygote: Zygote) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 2, steps=12))
    for count in (3, 4, 5):
        assert zygote.serve(tmp_path / "state", kill=["step", None, count]) == -9
    assert zygote.serve(tmp_path / "state") == 0
    assert {row["state"] for row in store.jobs()} == {"COMPLETED"}


@pytest.mark.parametrize(("how", "deaths"), [("killed", 3), ("crashed", 2), ("hung", 2), ("memory", 2)])
def test_an_error_in_a_step_is_a_death_of_its_jobs(
    how: str, deaths: int, tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies by its work is beside others once, and once with the job alone."""
    monkeypatch.setenv(RESTARTED, how)

    def fail(_: str, facts: dict[str, object]) -> None:
        if "job01" in facts["job_ids"]:  # type: ignore[operator]
            raise ValueError("a fault of ours")

    store = submit(tmp_path / "state", jobs(tmp_path, 3))
    for _ in range(deaths):
        with pytest.raises(ValueError, match="a fault of ours"):
            play(store, "fifo", faults=FaultPlan(step=fail))
    assert play(store, "fifo", faults=FaultPlan(step=fail)).failed == 1
    assert states(store) == {"job00": "COMPLETED", "job01": "FAILED_CRASHED", "job02": "COMPLETED"}
    assert {k: v for k, v in curves(store).items() if k != "job01"} == {k: whole[k] for k in ("job00", "job02")}


def dying(count: int) -> FaultPlan:
    """The process ends in its count-th step."""
    left = [count]

    def fault(_: str, facts: dict[str, object]) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise ValueError("a fault of ours")

    return FaultPlan(step=fault)


def test_a_death_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many starts end before they have begun."""
    store = submit(tmp_path / "state", jobs(tmp_path, 1, steps=8))
    with pytest.raises(ValueError, match="a fault of ours"):
        play(store, "fifo", faults=dying(4))

    def killed(*_: object) -> None:
        raise ValueError("no further than here")

    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(Saving, "tidy", killed)
            with pytest.raises(ValueError, match="no further"):
                play(store, "fifo")
        assert store.job("job00")["crashes"] == 1
    assert play(store, "fifo").failed == 0


def test_a_job_that_has_ended_is_not_blamed(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 1, steps=2))
    play(store, "fifo")
    marker = Marker(store.folder)
    marker.set("step", {"job00": 1.0})
    marker.close()
    play(store, "fifo")
    assert store.job("job00")["crashes"] == 0 and states(store) == {"job00": "COMPLETED"}

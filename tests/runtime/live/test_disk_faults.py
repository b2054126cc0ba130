"""Disks that are full, gone, or unreadable for a while: no job loses more than its time."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from loramux_runtime.jobs import checkpoint
from loramux_runtime.live.service import LiveService
from loramux_runtime.train.faults import FaultPlan
from loramux_traces.locking import owned

from .asking import states, stop_after
from .serving import curves, first, jobs, play, service, submit


def test_a_full_disk_pauses_a_job_and_keeps_what_there_was(tmp_path: Path, whole: dict[str, Any]) -> None:
    """The disk takes the checkpoints of every job but one."""
    full = [False]

    def no_space(_: str, facts: dict[str, object]) -> None:
        if facts["job_id"] == "job01" and facts["stage"] == "state" and full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")

    def from_then_on(_: str, facts: dict[str, object]) -> None:
        training = box[0].training.get("job01")
        full[0] = training is not None and training.step >= 3

    box: list[LiveService] = []
    said: list[str] = []
    store = submit(tmp_path / "state", jobs(tmp_path, 5))
    with owned(store.folder):
        faults = FaultPlan(checkpoint=no_space, step=from_then_on)
        box.append(service(store, "fifo", faults=faults, warn=said.append, checkpoint_s=0.0))
        assert box[0].play().failed == 0
    assert states(store) == {**dict.fromkeys(whole, "COMPLETED"), "job01": "HELD"}
    assert "cannot be written (No space left on device)" in store.job("job01")["reason"]
    assert any("job01 is paused" in text for text in said)
    kept = sorted((store.folder / "checkpoints" / "job01").iterdir())
    assert kept and not any(path.name.startswith(".") for path in kept)
    store.command("resume", "job01")
    assert play(store, "fifo").failed == 0
    assert curves(store) == whole


def test_a_corrupt_checkpoint_is_passed_over(tmp_path: Path, whole: dict[str, Any]) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 5))
    stop_after(store, 8, checkpoint_s=0.0)
    newest = sorted((store.folder / "checkpoints" / "job03").iterdir())[-1]
    tensors = newest / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[len(content) // 2] ^= 1
    tensors.write_bytes(bytes(content))
    # all of them: from the first step
    for path in (store.folder / "checkpoints" / "job01").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-7])
    said: list[str] = []
    assert play(store, "fifo", warn=said.append).failed == 0
    assert any(str(newest) in text for text in said) and any("begins again at its first step" in text for text in said)
    assert curves(store) == whole


def test_a_disk_that_is_not_there_costs_no_job(tmp_path: Path, whole: dict[str, Any]) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 3))
    stop_after(store, 4)
    rows = tmp_path / "rows.jsonl"
    rows.rename(tmp_path / "unmounted")
    # the kept rows are on the disk that is not there, too
    (store.folder / "rows").rename(tmp_path / "kept")
    play(store, "fifo")
    assert set(states(store).values()) == {"HELD"}
    assert "cannot be read any more" in store.job("job01")["reason"]
    play(store, "fifo")
    assert sorted(path.name for path in (store.folder / "checkpoints").iterdir()) == sorted(first(whole, 3))
    (tmp_path / "unmounted").rename(rows)
    for job_id in first(whole, 3):
        store.command("resume", job_id)
    play(store, "fifo")
    assert curves(store) == first(whole, 3)


def test_a_job_is_not_done_before_its_adapter_is_written(tmp_path: Path, whole: dict[str, Any]) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 3))
    (store.folder / "adapters").write_text("in the way")
    play(store, "fifo")
    assert set(states(store).values()) == {"HELD"}
    assert "cannot be written" in store.job("job00")["reason"] and store.job("job00")["finish_s"] is None
    (store.folder / "adapters").unlink()
    for job_id in first(whole, 3):
        store.command("resume", job_id)
    play(store, "fifo")
    assert set(states(store).values()) == {"COMPLETED"}
    assert curves(store) == first(whole, 3)
    assert sorted(path.name for path in (store.folder / "adapters").iterdir()) == sorted(first(whole, 3))


def test_checkpoints_that_cannot_be_read_now_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk, or files of another user after a restore.

    Not a job that begins again.
    """
    found = jobs(tmp_path, 1, steps=12)
    whole = submit(tmp_path / "whole", found)
    play(whole, "fifo")
    store = submit(tmp_path / "state", found)
    stop_after(store, 6)
    kept = sorted(path.name for path in (store.folder / "checkpoints" / "job00").iterdir())
    real = Path.open

    def failing(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "manifest.json" and "checkpoints" in self.parts:
            raise OSError(5, "Input/output error")
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        play(store, "fifo")
    assert states(store) == {"job00": "HELD"} and "Input/output error" in store.job("job00")["reason"]
    assert sorted(path.name for path in (store.folder / "checkpoints" / "job00").iterdir()) == kept
    store.command("resume", "job00")
    play(store, "fifo")
    assert states(store) == {"job00": "COMPLETED"} and curves(store) == curves(whole)


def test_an_error_of_the_disk_in_mid_read_pauses_the_job_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loramux_runtime.jobs import checkpoint_files

    store = submit(tmp_path / "state", jobs(tmp_path, 1, steps=12))
    stop_after(store, 6)
    step, n = store.job("job00")["step"], len(store.records("job00"))
    real, looks = os.open, [1]

    def failing(path: Any, *arguments: Any, **options: Any) -> int:
        # whether the file can be opened is looked at once, before the job comes in
        if str(path).endswith("tensors.safetensors") and not looks:
            raise OSError(5, "Input/output error")
        if str(path).endswith("tensors.safetensors"):
            looks.pop()
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files.os, "open", failing)
        play(store, "fifo")
    assert states(store) == {"job00": "HELD"} and "Input/output error" in store.job("job00")["reason"]
    assert (store.job("job00")["step"], len(store.records("job00"))) == (step, n)
    store.command("resume", "job00")
    play(store, "fifo")
    assert states(store) == {"job00": "COMPLETED"}


def test_a_checkpoint_that_cannot_be_deleted_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 3, steps=4))
    real = checkpoint._delete

    def delete(path: Path) -> None:
        if path.name == "job00":
            raise OSError(16, "Device or resource busy")
        real(path)

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_delete", delete)
        # a checkpoint after every step: there must be one to delete, however fast the job is
        play(store, "exclusive", warn=said.append, checkpoint_s=0.0)
        play(store, "exclusive", warn=said.append)
    assert set(states(store).values()) == {"COMPLETED"} and "cannot be removed" in said[0]
    play(store, "exclusive")
    assert not (store.folder / "checkpoints" / "job00").exists()

"""Out of memory, not a number, bad data, jobs that never fit.

Each costs one job, the others end bit-equal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux_profiles.devices import load_device
from loramux_runtime.live.service import LiveService
from loramux_runtime.train.faults import FaultPlan
from loramux_traces.locking import owned

from .asking import states, stop_after
from .serving import curves, jobs, play, service, submit


def out_of_memory(when: Any) -> FaultPlan:
    """Raises what torch raises in every step for which `when(facts)`."""

    def fault(_: str, facts: dict[str, object]) -> None:
        if when(facts):
            raise torch.OutOfMemoryError("injected")

    return FaultPlan(step=fault)


def test_out_of_memory_evicts_the_newest_and_changes_no_bits(tmp_path: Path, whole: dict[str, Any]) -> None:
    left = [2]

    def twice(facts: dict[str, Any]) -> bool:
        left[0] -= len(facts["job_ids"]) > 3
        return left[0] >= 0 and len(facts["job_ids"]) > 3

    store = submit(tmp_path / "state", jobs(tmp_path, 5))
    with owned(store.folder):
        scheduler = service(store, "fifo", faults=out_of_memory(twice))
        outcome = scheduler.play()
    assert outcome.failed == 0
    assert curves(store) == whole
    evicted = [event for event in store.events() if event["event"] == "oom"]
    assert len(evicted) == 2 and "bytes were expected" in evicted[0]["detail"]
    assert sum(row["oom_events"] for row in store.jobs()) == 2
    assert scheduler.loop.cluster.fleet[0].raised > 0.0


def test_out_of_memory_alone_halves_the_micro_batch(tmp_path: Path, whole: dict[str, Any]) -> None:
    def too_many(facts: dict[str, Any]) -> bool:
        return "job02" in facts["job_ids"] and facts["rows"][facts["job_ids"].index("job02")] > 1

    store = submit(tmp_path / "state", jobs(tmp_path, 5))
    assert play(store, "exclusive", faults=out_of_memory(too_many)).failed == 0
    assert set(states(store).values()) == {"COMPLETED"}
    splits = [event["detail"] for event in store.events() if event["event"] == "split"]
    assert splits == ["2 rows at a time from now on", "1 rows at a time from now on"]
    found = curves(store)
    assert {k: v for k, v in found.items() if k != "job02"} == {k: v for k, v in whole.items() if k != "job02"}
    losses = [[record["loss"] for record in run["job02"]] for run in (found, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # the same rows in other pieces
    assert store.job("job02")["micro_batch"] == 1


def test_a_job_that_never_fits_fails_with_figures_and_the_others_end(tmp_path: Path, whole: dict[str, Any]) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 5))
    outcome = play(store, "fifo", faults=out_of_memory(lambda facts: "job03" in facts["job_ids"]))
    assert outcome.failed == 1
    assert states(store) == {**dict.fromkeys(whole, "COMPLETED"), "job03": "FAILED_OOM"}
    assert "bytes were expected" in store.job("job03")["reason"]
    assert {k: v for k, v in curves(store).items() if k != "job03"} == {k: v for k, v in whole.items() if k != "job03"}


def test_a_job_larger_than_the_device(tmp_path: Path) -> None:
    cpu = load_device("cpu")
    small = cpu.parameters["memory_bytes"].model_copy(update={"value": 6e6})
    profile = cpu.model_copy(update={"parameters": {**cpu.parameters, "memory_bytes": small}})
    found = jobs(tmp_path, 2)
    found[1] |= {"adapter": {"rank": 256, "num_experts": 8}}
    store = submit(tmp_path / "state", found)
    outcome = play(store, "fifo", profile=profile)
    assert outcome.hopeless == 1
    assert states(store) == {"job00": "COMPLETED", "job01": "UNSCHEDULABLE"}
    assert "needs" in store.job("job01")["reason"] and "bytes" in store.job("job01")["reason"]


def test_not_a_number_ends_one_job(tmp_path: Path, whole: dict[str, Any]) -> None:
    box: list[LiveService] = []

    def spoil(_: str, facts: dict[str, object]) -> None:
        training = box[0].training.get("job01")
        if training is not None and training.step >= 2:
            training.adapter.slab.params.fill_(float("nan"))

    store = submit(tmp_path / "state", jobs(tmp_path, 5))
    with owned(store.folder):
        box.append(service(store, "fifo", faults=FaultPlan(step=spoil)))
        assert box[0].play().failed == 1
    assert states(store) == {**dict.fromkeys(whole, "COMPLETED"), "job01": "FAILED_DIVERGED"}
    assert "not finite in 3 steps in a row" in store.job("job01")["reason"]
    assert not (store.folder / "adapters" / "job01").exists()
    assert {k: v for k, v in curves(store).items() if k != "job01"} == {k: v for k, v in whole.items() if k != "job01"}


BAD_DATA: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "no such file"),
    "empty": (b"", "has no rows"),
    "not JSON": (b"{'text': 1}\n", "JSON"),
    "not text": (b'{"text": 7}\n', "text"),
    "bytes": (b"\xff\xfe\x00\x01", "UTF-8"),
    "NUL": (b'{"text": "a\x00b"}\n', ""),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data_is_rejected_at_admission(kind: str, tmp_path: Path) -> None:
    content, said = BAD_DATA[kind]
    found = jobs(tmp_path, 2, steps=1)
    bad = tmp_path / "bad.jsonl"
    if content is not None:
        bad.write_bytes(content)
    found[1]["data"] = {"path": str(bad)}
    store = submit(tmp_path / "state", found)
    play(store, "fifo")
    assert states(store) == {"job00": "COMPLETED", "job01": "REJECTED"}
    assert "bad.jsonl" in store.job("job01")["reason"] and said in store.job("job01")["reason"]


def test_a_token_beyond_the_vocabulary_is_rejected(tmp_path: Path) -> None:
    found = jobs(tmp_path, 2, steps=1)
    store = submit(tmp_path / "state", found)
    with owned(store.folder):
        scheduler = service(store, "fifo")
        scheduler.engine.base.hf.config.vocab_size = 60
        scheduler.play()
    assert set(states(store).values()) == {"REJECTED"}
    assert "token ids must be below 60" in store.job("job00")["reason"]


def test_data_that_changed_is_noticed(tmp_path: Path) -> None:
    whole = submit(tmp_path / "whole", jobs(tmp_path, 1, steps=4))
    play(whole, "fifo")
    store = submit(tmp_path / "state", jobs(tmp_path, 1, steps=4))
    stop_after(store, 3)
    assert states(store) == {"job00": "RUNNING"} or states(store) == {"job00": "WAITING"}
    rows = [json.dumps({"text": f"other {i}"}) + "\n" for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    play(store, "fifo")
    assert states(store) == {"job00": "HELD"}
    assert "the data file is not what it was when the job began" in store.job("job00")["reason"]
    store.command("resume", "job00")
    assert play(store, "fifo").failed == 0
    # on the rows that it began with: the file is another one by now
    assert curves(store) == curves(whole)


def test_a_process_that_takes_memory_is_respected(tmp_path: Path, whole: dict[str, Any]) -> None:
    """The newest residents make room, and come back when it has gone."""
    seen: list[tuple[float, int]] = []
    asked = [0]

    def watch(now_s: float) -> float | None:
        asked[0] += 1
        seen.append((box[0].host.capacity_bytes, len(box[0].loop.cluster.fleet[0].jobs)))
        if asked[0] == 6:
            return box[0].loop.cluster.fleet[0].used * 0.6
        return 1e9 if asked[0] == 12 else None

    box: list[LiveService] = []
    store = submit(tmp_path / "state", jobs(tmp_path, 5))
    with owned(store.folder):
        box.append(service(store, "fifo", options={"watch": watch}))
        assert box[0].play().failed == 0
    assert curves(store) == whole
    small = [n for capacity, n in seen if capacity < 1e9]
    assert small and max(small) < max(n for _, n in seen)
    events = [event["event"] for event in store.events()]
    assert events.count("capacity") == 2 and "pause" in events


def test_data_may_change_until_a_job_begins(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 2, steps=3))
    with owned(store.folder):
        scheduler = service(store, "exclusive", faults=FaultPlan(step=lambda *_: scheduler.driver.request_stop()))
        scheduler.play()
    assert store.job("job01")["start_s"] is None and store.job("job01")["data_sha256"]
    rows = [{"text": f"other rows {i}"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    play(store, "exclusive")
    assert states(store) == {"job00": "HELD", "job01": "COMPLETED"}


def test_a_job_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 2, steps=6))
    steps = [0]

    def out_of_memory(_: str, facts: dict[str, object]) -> None:
        if "job00" in facts["job_ids"]:  # type: ignore[operator]
            steps[0] += 1
            if steps[0] > 3:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: injected")

    with owned(store.folder):
        scheduler = service(store, "exclusive", faults=FaultPlan(step=out_of_memory))
        scheduler.play()
    assert states(store) == {"job00": "FAILED_OOM", "job01": "COMPLETED"}
    held = (scheduler.training, scheduler.roster._entries, scheduler.book._attained_s, scheduler.notes._bounds)
    assert not any(held) and not list((store.folder / "checkpoints").glob("*/*"))


def test_out_of_memory_in_an_evaluation_scores_fewer_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loramux_runtime.fused.model import FusedModel

    found = jobs(tmp_path, 1, steps=3)
    whole = submit(tmp_path / "whole", found)
    play(whole, "fifo")
    real, sizes = FusedModel.score, []

    def score(self: FusedModel, adapter: Any, batch: Any) -> Any:
        sizes.append(len(batch.tokens))
        if len(batch.tokens) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return real(self, adapter, batch)

    monkeypatch.setattr(FusedModel, "score", score)
    store = submit(tmp_path / "state", found)
    play(store, "fifo")
    assert max(sizes) == 4 and states(store) == {"job00": "COMPLETED"}
    last, expected = (run["job00"][-1]["eval_loss"] for run in (curves(store), curves(whole)))
    assert last == pytest.approx(expected, rel=1e-5)

"""The recorded stream alone: what it must hold, and a replay that leaves it.

No device, no torch, no SimPy.
"""

from __future__ import annotations

from typing import Any

import pytest

from loramux_policies import create
from loramux_policies.stepping.replay import Replay, replay
from loramux_policies.stepping.stream import Stream, decisions
from loramux_profiles.devices import load_device
from loramux_traces.errors import StateError
from loramux_traces.job import JobSpec

Events = list[dict[str, Any]]


def spec(job_id: str, submit_s: float = 0.0, **fields: Any) -> JobSpec:
    return JobSpec(
        job_id=job_id,
        submit_s=submit_s,
        base_model="llama-7b",
        method="lora",
        batch_size=4,
        micro_batch_size=2,
        seq_len=64,
        total_steps=1.0,
        **fields,
    )


def step(began_s: float, t_s: float, *job_ids: str, **fields: Any) -> dict[str, Any]:
    return {"t_s": t_s, "event": "step", "began_s": began_s, "entries": [[i, [64, 60]] for i in job_ids], **fields}


def row(t_s: float, event: str, job_id: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"t_s": t_s, "event": event} | ({"job_id": job_id} if job_id else {}) | fields


ON = {"devices": [0]}
OOM = (
    "the device ran out of memory in a fused step (at most 20807439933 bytes were expected, 84825604096 are available)"
)
STORY: Events = [
    row(0.0, "begin"),
    row(2.5, "wait"),
    row(2.5, "arrive", "a"),
    row(2.5, "start", "a", **ON),
    step(2.6, 4.0, "a"),
    row(4.0, "arrive", "b"),  # submitted at 3 s, in the middle of the step
    row(4.0, "start", "b", **ON),
    step(4.0, 5.0, "a", "b", oom=True),  # a begins its optimizer step again, b leaves and comes back
    row(5.0, "oom", "b", **ON, detail=OOM),
    row(5.0, "resume", "b", **ON),
    step(5.0, 6.0, "a", "b"),
    step(6.0, 7.0, "a", "b"),
    row(7.0, "finish", "a", **ON),
    row(7.0, "diverge", "b", **ON, detail="not finite"),
]
SPECS = [spec("b", 3.0), spec("a", 2.0)]


def again(events: Events, specs: list[JobSpec] = SPECS, policy: str = "fifo") -> Events:
    return replayed(events, specs, policy).events


def replayed(events: Events, specs: list[JobSpec] = SPECS, policy: str = "fifo") -> Replay:
    return replay(events, specs, create(policy), load_device("a100-80g"))


def test_a_stream_is_replayed_to_the_row() -> None:
    assert again(STORY) == STORY


def test_an_arrival_is_heard_at_the_next_instant() -> None:
    later = again([{**r, "t_s": 2.9} if r.get("began_s") == 2.6 else r for r in STORY])
    heard = next(r for r in later if r["event"] == "arrive" and r["job_id"] == "b")
    assert heard["t_s"] == 5.0


def test_a_job_that_was_submitted_earlier_starts_earlier() -> None:
    log = decisions(again(STORY, [spec("a", 2.0), spec("b", 2.25)]))
    assert log != decisions(STORY) and log[3][:3] == (2.5, "start", "b")


def test_a_stream_says_how_far_each_job_got() -> None:
    stream = Stream.of(STORY, {"a": 4, "b": 4})
    assert stream.jobs["a"].lengths == (64, 60, 64, 60) and stream.jobs["a"].end_rows == 4
    assert stream.jobs["b"].diverged == "not finite"
    assert [moment.out_of_memory for moment in stream.moments] == [False, False, True, False, False]


def test_a_replay_says_where_it_left_the_record() -> None:
    """With the decisions until then."""
    assert replayed(STORY).left == ""
    sooner = replayed(STORY, [spec("a"), spec("b")])
    assert sooner.left == "at 0.000000 s the record goes on with a wait, the run with a step"
    assert [r["event"] for r in sooner.events] == ["begin", "arrive", "arrive", "start", "start"]
    one_more = replayed(STORY, [*SPECS, spec("c", 9.0)])
    assert one_more.events == STORY
    assert one_more.left == "at 7.000000 s the record is over, and the run goes on with a wait"
    assert "how long row 0 of c is" in replayed(STORY, [*SPECS, spec("c", 2.0)]).left
    assert replayed(STORY[:9]).left == "at 5.000000 s the record is over, and the run goes on with a step"


@pytest.mark.parametrize(
    "broken",
    [{"t_s": 0.0}, {"event": "step", "t_s": 1.0}, {"event": "wait", "t_s": "soon"}, row(1.0, "finish", "nobody")],
)
def test_rows_that_are_no_events_are_named(broken: dict[str, Any]) -> None:
    with pytest.raises(StateError, match="event 2 is not one of a recorded run"):
        Stream.of([row(0.0, "begin"), broken], {"a": 4})


def test_events_without_a_stream_are_refused() -> None:
    with pytest.raises(StateError, match="no recorded stream"):
        Stream.of([row(0.0, "arrive", "a")], {"a": 4})


def test_a_bound_that_the_refit_moved_is_replayed() -> None:
    """At 2.6 the device has no room for b beside a; without the row that says so it has."""
    tight = 80 * 1024**3 / 16e9
    moved = [{**r, "scale": 40 * tight} if r.get("began_s") == 2.6 else r for r in STORY]
    assert Stream.of(moved, {"a": 4, "b": 4}).moments[1].scale == 40 * tight
    events = again(moved)
    assert next(r for r in events if r.get("began_s") == 2.6)["scale"] == 40 * tight
    assert not any(r["event"] == "start" and r["job_id"] == "b" and r["t_s"] == 4.0 for r in events)

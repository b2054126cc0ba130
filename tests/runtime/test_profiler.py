"""The profiler: which steps it chooses, and what a kill leaves.

What it makes of a step without memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig

from loramux_profiles.records import Transfers
from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_point import METHODS, AdapterPoint, JobPoint, StepPoint
from loramux_profiles.time_features import FEATURES, INDEX, step_features
from loramux_runtime.fused.base_model import build_base
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.profiler.grid import Chooser, Limits, draw
from loramux_runtime.profiler.journal import Journal, journal_path, read_journal, rows_of
from loramux_runtime.profiler.measure import Measured, Timed, measure_block, peak, side_by_side
from loramux_runtime.profiler.session import Session, SessionReport
from loramux_runtime.profiler.step import PointStep
from loramux_runtime.profiler.tracker import StorageTracker
from loramux_runtime.profiler.transfers import measure_transfers
from loramux_traces.errors import InvalidInputError, StateError, UsageError

SHAPE = ModelShape(name="tiny", hidden=32, ffn=64, layers=2, heads=2, kv_heads=1, head_dim=16, vocab=80)
LIMITS = Limits(jobs=3, rows=2, length=12, tokens=60, layers=2)
IDENTITY = {"model": "tiny", "seed": 0}


@pytest.fixture(scope="module")
def model() -> FusedModel:
    config = AutoConfig.for_model(
        "llama",
        hidden_size=SHAPE.hidden,
        intermediate_size=SHAPE.ffn,
        num_hidden_layers=SHAPE.layers,
        num_attention_heads=SHAPE.heads,
        num_key_value_heads=SHAPE.kv_heads,
        head_dim=SHAPE.head_dim,
        vocab_size=SHAPE.vocab,
    )
    return FusedModel(build_base(config, dtype="fp32"))


def points(n: int, *, seed: int = 0, limits: Limits = LIMITS) -> list[StepPoint]:
    return list(islice(draw(limits, seed=seed), n))


@pytest.fixture
def open_journal(tmp_path: Path) -> Iterator[Callable[..., Journal]]:
    """Opens the journal of one record.

    What it opened before is closed, as by the end of a process.
    """
    with ExitStack() as stack:

        def make(identity: dict[str, Any] = IDENTITY, **options: bool) -> Journal:
            stack.close()
            return stack.enter_context(Journal(journal_path(tmp_path / "tiny.json"), identity, **options))

        yield make


@pytest.fixture
def session(model: FusedModel, open_journal: Callable[..., Journal]) -> Callable[..., Session]:
    def make(*, resume: bool = False, most: int | None = None) -> Session:
        journal = open_journal(resume=resume)
        return Session(model=model, shape=SHAPE, journal=journal, limits=LIMITS, repeats=2, most=most)

    return make


Make = Callable[..., Session]


def test_draws_are_seeded_and_cover_everything() -> None:
    assert points(20) == points(20) != points(20, seed=1)
    drawn = points(400, limits=Limits(layers=4))
    jobs = [job for point in drawn for job in point.jobs]
    assert Counter(job.adapter.method for job in jobs).keys() == set(METHODS)
    assert {len(point.jobs) for point in drawn} == set(range(1, 9))
    assert {point.recompute for point in drawn} == {True, False}
    assert {job.adapter.targets for job in jobs} == {"all-linear", "attention", "mlp", "qv"}
    assert {job.adapter.method for job in jobs if job.adapter.dora} == {"lora", "mixlora"}
    assert any(isinstance(job.adapter.experts, tuple) for job in jobs)
    assert min(min(job.lengths) for job in jobs) == 1
    assert max(max(job.lengths) for job in jobs) > 200
    assert max(point.tokens for point in drawn) <= Limits().tokens


def test_every_feature_of_the_time_model_is_in_the_draws() -> None:
    seen = sum(step_features(SHAPE, point) for point in points(300, limits=Limits(layers=2)))
    assert np.all(seen > 0), [name for name in FEATURES if not seen[INDEX[name]]]


def test_chosen_points_teach_more_per_second_than_drawn_ones() -> None:
    def seconds(point: StepPoint) -> float:
        return 0.01 + 1e-4 * point.tokens

    def features(point: StepPoint) -> np.ndarray:  # type: ignore[type-arg]
        return step_features(SHAPE, point)

    chooser = Chooser(Limits(layers=2), seed=0, features=features, seconds=seconds, core=20)
    chosen = [chooser.next() for _ in range(60)]
    drawn = points(60, limits=Limits(layers=2))
    assert len(set(chosen)) == 60
    assert chosen[:20] == drawn[:20]
    assert sum(map(seconds, chosen)) < sum(map(seconds, drawn))
    all_rows = [features(p) / seconds(p) for p in chosen + drawn]
    scale = np.sqrt((np.stack(all_rows) ** 2).mean(axis=0) + 1e-30)

    def volume(found: list[StepPoint]) -> float:
        rows = np.stack([features(p) / seconds(p) for p in found]) / scale
        return float(np.linalg.slogdet(rows.T @ rows + 1e-3 * np.eye(rows.shape[1]))[1])

    assert volume(chosen) > volume(drawn)


def test_a_block_measures_the_real_step(model: FusedModel) -> None:
    block = [Measured(point=point) for point in points(3)]
    order: list[int] = []
    measure_block(
        model,
        block,
        repeats=3,
        limit_bytes=None,
        seed=0,
        found=lambda one: None,
        sampled=lambda one: order.append(block.index(one)),
    )
    assert order == [0, 1, 2, 2, 1, 0, 0, 1, 2]
    for one in block:
        assert len(one.samples) == 3
        assert one.anchor_s == block[0].anchor_s
        assert one.memory["dynamic"] > 0
        assert one.memory["total"] > model.base.weight_bytes
        assert Measured.from_dict(one.to_dict()) == one


def test_peaks_are_measured_with_nothing_else_on_the_device(model: FusedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    inner = PointStep.__init__

    def spy(self: PointStep, *arguments: object, **options: object) -> None:
        order.append("ready")
        inner(self, *arguments, **options)  # type: ignore[arg-type]

    def no_peak(*_: object) -> dict[str, int]:
        order.append("peak")
        return {"dynamic": 1, "state": 1, "total": 2}

    monkeypatch.setattr(PointStep, "__init__", spy)
    monkeypatch.setattr("loramux_runtime.profiler.measure.peak", no_peak)
    block = [Measured(point=point) for point in points(2)]
    measure_block(model, block, repeats=1, limit_bytes=None, seed=0, found=lambda one: None, sampled=lambda one: None)
    # the first two are the reference step
    assert order == ["ready", "peak", "peak", "ready", "ready", "ready"]


def test_a_step_without_memory_beside_the_others_has_no_times(
    model: FusedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = [Measured(point=point) for point in points(3)]
    inner = Timed.sample

    def sample(self: Timed) -> float:
        if self.measured is block[1] and block[1].samples:
            raise RuntimeError("can't allocate memory")
        return inner(self)

    monkeypatch.setattr(Timed, "sample", sample)
    measure_block(model, block, repeats=3, limit_bytes=None, seed=0, found=lambda one: None, sampled=lambda one: None)
    assert [len(one.samples) for one in block] == [3, 1, 3]
    assert not block[1].censored


def test_steps_that_take_turns_fit_side_by_side() -> None:
    sizes = [(3, 1), (4, 2), (1, 6), (20, 1), (1, 1), (1, 1)]
    block = [Measured(point=p, memory={"state": s, "dynamic": d}) for p, (s, d) in zip(points(6), sizes, strict=True)]
    groups = [[block.index(one) for one in group] for group in side_by_side(block, 10)]
    assert groups == [[0, 1], [2], [3], [4, 5]]
    assert [len(group) for group in side_by_side(block, float("inf"))] == [6]
    assert list(side_by_side([], 10)) == []


def test_active_experts_of_a_dynmole_job_are_recorded(model: FusedModel) -> None:
    found = next(p for p in draw(LIMITS, seed=3) if {j.adapter.method for j in p.jobs} >= {"dynmole", "lora"})
    one = Measured(point=found)
    measure_block(model, [one], repeats=1, limit_bytes=None, seed=0, found=lambda one: None, sampled=lambda one: None)
    assert one.active_experts is not None
    for job, active in zip(found.jobs, one.active_experts, strict=True):
        assert (active is not None) == (job.adapter.method == "dynmole")


def test_the_memory_of_a_dynmole_step_does_not_follow_its_active_experts(model: FusedModel) -> None:
    """Its experts are computed densely.

    2 of 8 active take the bytes of 8 of 8, and the models hold them constant.
    """
    adapter = AdapterPoint(method="dynmole", rank=4, experts=8, top_k=2)
    step = PointStep(model, StepPoint(jobs=(JobPoint(adapter=adapter, lengths=(30, 20), labels=20),)))
    (slab,) = [one.slab for one in step.adapters]
    gates = [slab.param(spec.key) for spec in slab.layout.specs if spec.key.endswith(".gate")]
    seen: list[tuple[float, int]] = []
    for sharpness in (0.0, 1e4):  # all experts alike; one of them certain
        for gate in gates:
            gate.normal_().mul_(sharpness)
        tracker = StorageTracker()
        with tracker:
            (outcome,) = model.step(step.parts)
        assert outcome.active_experts is not None
        seen.append((outcome.active_experts, tracker.peak))
    (many, dense), (few, sharp) = seen
    assert many == pytest.approx(8.0)
    assert few < 2.5
    assert dense == sharp


def test_steps_of_a_block_keep_their_own_recompute(model: FusedModel) -> None:
    mixed = [next(p for p in draw(LIMITS, seed=0) if p.recompute is wanted) for wanted in (True, False)]
    seen: list[bool] = []
    inner = FusedModel.step

    def spy(self: FusedModel, parts: object) -> object:
        seen.append(self.recompute)
        return inner(self, parts)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FusedModel, "step", spy)
        patch.setattr("loramux_runtime.profiler.measure.peak", lambda *_: {"dynamic": 1, "state": 1, "total": 2})
        block = [Measured(point=p) for p in mixed]
        measure_block(model, block, repeats=1, limit_bytes=None, seed=0, found=lambda one: None, sampled=lambda o: None)
    anchor = False
    assert seen == [anchor, anchor, True, False, anchor, True, False, anchor]


def test_a_step_without_memory_is_a_censored_observation(model: FusedModel) -> None:
    (point,) = points(1)
    whole = peak(model, point, None)
    assert peak(model, point, whole["total"]) == whole
    limit = whole["total"] - 512
    assert peak(model, point, limit) == {"censored": True, "known": limit}


def test_other_errors_are_not_taken_for_missing_memory(model: FusedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: PointStep) -> None:
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(PointStep, "run", broken)
    with pytest.raises(RuntimeError, match="a fault of our own"):
        peak(model, points(1)[0], None)


def test_a_session_goes_on_past_steps_without_memory(model: FusedModel, session: Make) -> None:
    totals = [peak(model, point, None)["total"] for point in points(5)]
    run = session(most=5)
    run.limit_bytes = float(sorted(totals)[2])
    told: list[SessionReport] = []
    run.tell = told.append
    assert run.run(600) == "enough points"
    assert [one.censored for one in run.found] == [total > run.limit_bytes for total in totals]
    assert told[-1].censored == 2
    assert told[-1].timed == 3
    assert all(("time" in row) != bool(row["memory"].get("censored")) for row in rows_of(run.found, 2))


class Killed(BaseException):
    """Stands for whatever ends a run."""


def test_a_run_that_is_broken_off_loses_nothing(session: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loramux_runtime.profiler.session.BLOCK", 4)
    run = session(most=6)
    seen: list[SessionReport] = []

    def tell(progress: SessionReport) -> None:
        seen.append(progress)
        if len(seen) == 6:  # the four peaks of the first block and two of its steps' times
            raise Killed

    run.tell = tell
    with pytest.raises(Killed):
        run.run(600)
    known = [(one.point, dict(one.memory), list(one.samples)) for one in run.found]
    samples = sum(len(one.samples) for one in run.found)
    # torn in mid-line
    run.journal.path.write_bytes(run.journal.path.read_bytes() + b'{"point":7,"seco')
    again = session(resume=True, most=6)
    assert [(one.point, one.memory, one.samples) for one in again.found] == known
    assert samples >= 2
    again.run(600)
    assert len(again.found) == 6
    assert all(len(one.samples) == 2 for one in again.found)
    assert [one.point for one in again.found] == points(6)
    assert [one.samples[: len(before)] for one, (_, _, before) in zip(again.found, known, strict=False)] == [
        before for _, _, before in known
    ]


def test_a_journal_is_not_overwritten_by_accident(open_journal: Callable[..., Journal]) -> None:
    open_journal()
    with pytest.raises(StateError, match="--resume"):
        open_journal()
    with pytest.raises(UsageError, match="is of seed '0', not '1'"):
        open_journal({**IDENTITY, "seed": 1}, resume=True)
    assert open_journal({**IDENTITY, "seed": 1}, force=True).found == []


def test_two_runs_do_not_write_one_journal(tmp_path: Path) -> None:
    path = journal_path(tmp_path / "tiny.json")
    with Journal(path, IDENTITY), pytest.raises(StateError, match="another run"):
        Journal(path, IDENTITY, force=True)


@pytest.mark.parametrize(
    "line", ["no json", "[1]", '{"point": 5, "seconds": 1.0, "active": null, "anchor": 1.0}', '{"point": 0}']
)
def test_a_damaged_journal_is_refused_with_its_line(session: Make, line: str) -> None:
    run = session(most=1)
    run.run(600)
    lines = run.journal.path.read_text().splitlines()
    run.journal.path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    with pytest.raises(InvalidInputError, match=":3:") as caught:
        session(resume=True)
    assert "\n" not in str(caught.value)


def test_a_journal_keeps_notes(open_journal: Callable[..., Journal]) -> None:
    journal = open_journal()
    journal.note("date", "2026-01-01")
    journal.note("date", "2026-01-02")
    assert open_journal(resume=True).notes == {"date": "2026-01-02"}
    assert read_journal(journal.path).identity == IDENTITY


def test_a_journal_whose_first_line_is_torn_begins_anew(session: Make, tmp_path: Path) -> None:
    path = journal_path(tmp_path / "tiny.json")
    path.write_bytes(b'{"identity": {"mod')
    assert session(resume=True, most=1).run(600) == "enough points"
    assert len(session(resume=True).found) == 1


def test_transfers_are_a_section_of_a_record(model: FusedModel) -> None:
    found = Transfers.model_validate(measure_transfers(model))
    assert found.base_bytes == model.base.weight_bytes
    assert found.base_load_s > 0
    assert list(found.join.sizes) == sorted(found.join.sizes)
    assert found.pause.byte_s + found.pause.fixed_s > 0


@pytest.mark.parametrize(("slow", "budget_s"), [(2.0, 30.0), (20.0, 30.0), (60.0, 200.0)])
def test_the_budget_is_not_exceeded_however_slow_the_machine_is(
    session: Make, monkeypatch: pytest.MonkeyPatch, slow: float, budget_s: float
) -> None:
    """A clock of numbers: steps take `slow` times what is guessed, and loading took 9 s before."""
    from types import SimpleNamespace

    from loramux_runtime.profiler import session as module

    clock = [109.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    made = session()

    def measured(journal: Any, model: Any, block: list[Measured], *, check: Callable[[], None], **_: Any) -> None:
        for one in block:
            clock[0] += slow * 3 * made._seconds(one.point)
            one.memory = {"dynamic": 1, "state": 0, "censored": False}
            journal.found.append(one)
            check()

    monkeypatch.setattr(module, "record_block", measured)
    assert made.run(budget_s, 100.0) == "budget"
    assert clock[0] - 100.0 <= budget_s
    assert made.found
    assert made.next_s > 0.0
    assert clock[0] + 2.5 * made.next_s + 0.1 * budget_s > 100.0 + budget_s - 2.0  # and not much is left unused

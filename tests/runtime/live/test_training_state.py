"""A job built anew from its state goes on bit-equal, from any fused step.

Another job's state is refused.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux_runtime.fused.model import JobOutcome
from loramux_runtime.fused.packing import Part
from loramux_traces.errors import StateError

from ..matrix import NAMES
from .ckpt import OPTIMIZERS, Trained, assert_same, model, store


def resumed(trained: Trained, folder: Path, **made: Any) -> Trained:
    """Through files into a job that has other values everywhere."""
    store(folder).save("a", trained.job, {})
    new = Trained(**made)
    new.fused_steps(2)  # what it was before must not matter
    new.records.clear()
    assert store(folder).load("a", new.job) == {"step": trained.job.step, "rows_done": trained.job.rows_done}
    assert_same(new, trained)
    return new


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_bit_equal(name: str, optimizer: str, tmp_path: Path) -> None:
    """Three fused steps of 2, 2 and 1 rows make one optimizer step.

    After 7 of them one is in progress.
    """
    first = Trained(name, optimizer)
    first.fused_steps(7)
    assert first.job.rows_done == 2 and first.job.step == 2
    second = resumed(first, tmp_path, name=name, optimizer=optimizer)
    for job in (first, second):
        job.fused_steps()
    assert second.records == first.records[2:] and len(first.records) == 4
    assert_same(first, second)


def test_every_fused_step_is_a_place_to_stop(tmp_path: Path) -> None:
    """Built anew after each one, and before the first."""
    whole, broken = Trained("dynmole", rows=3), resumed(Trained("dynmole", rows=3), tmp_path, name="dynmole", rows=3)
    records = []
    while not broken.job.finished:
        broken.fused_steps(1)
        records += broken.records
        broken = resumed(broken, tmp_path, name="dynmole", rows=3)
    whole.fused_steps()
    assert records == whole.records and "active_experts" in records[0]
    assert_same(broken, whole)


def test_evaluation_patience_and_prediction_go_on(tmp_path: Path) -> None:
    """Nothing is learned, so that patience ends it after its fourth evaluation.

    P_stop needs 20 losses.
    """
    fields: dict[str, Any] = {
        "steps": 90,
        "optimizer": {"name": "sgd", "lr": 1e-12},
        "evaluation": {"every_steps": 9, "patience": 3, "min_improvement": 0.01},
    }
    first = Trained(rows=5, **fields)
    first.fused_steps(25)
    assert first.job.p_stop > 0.0 and first.job._patience.bad == 1 and first.job.evaluation is not None
    second = resumed(first, tmp_path, rows=5, **fields)
    assert second.job.first_evaluation == first.job.first_evaluation is not None
    for job in (first, second):
        job.fused_steps()
        assert job.job.stopped and job.job.step == 36
    assert second.records == first.records[25:]
    assert_same(first, second)


def test_a_job_that_is_going_wrong_goes_on_going_wrong(tmp_path: Path) -> None:
    """NaN and infinite partial sums survive, and so do the skipped steps."""

    def run(loss: float, trained: Trained) -> None:
        batch = trained.job.peek(2)
        model().step([Part(adapter=trained.job.adapter, batch=batch)])
        trained.job.commit(batch, JobOutcome(job_id="a", loss=loss, aux_loss=-math.inf, n_tokens=1), model())

    first = Trained()
    for _ in range(5):
        run(math.nan, first)
    assert first.job.step == 1 and first.job._skipped == 1 and math.isnan(first.job._loss)
    second = resumed(first, tmp_path)
    assert math.isnan(second.job._loss) and second.job._aux == -math.inf
    for trained in (first, second):
        for _ in range(4):
            run(math.inf, trained)
        assert trained.job.step == 3 and "3 steps in a row" in trained.job.diverged
    third = resumed(second, tmp_path)
    assert third.job.diverged == first.job.diverged


def test_the_facts_are_strict_json() -> None:
    trained = Trained()
    trained.fused_steps(1)
    trained.job._loss, trained.job._aux = math.nan, math.inf
    facts = trained.job.state()[1]
    again = json.loads(json.dumps(facts, allow_nan=False))
    new = Trained()
    new.job.restore(trained.job.state()[0], again)
    assert math.isnan(new.job._loss) and new.job._aux == math.inf
    assert new.job.state()[1]["identity"] == again["identity"]


OTHERS: dict[str, dict[str, Any]] = {
    "batch_size": {"batch_size": 4},
    "seed": {"seed": 4},
    "optimizer.lr": {"optimizer": {"name": "adamw", "lr": 0.02, "weight_decay": 0.1}},
    "optimizer.name": {"optimizer": "sgd"},
    "total_steps": {"steps": 7},
    "rows": {"salt": 1},
    "adapter.rank": {"name": "rslora"},
    "method": {"name": "mola"},
    "schedule.warmup_steps": {"schedule": {"name": "cosine", "warmup_steps": 1}},
    "max_grad_norm": {"max_grad_norm": 2.0},
    "evaluation.every_steps": {"evaluation": {"every_steps": 2}},
}


@pytest.mark.parametrize("what", OTHERS)
def test_the_state_of_another_job_is_refused(what: str) -> None:
    mine, other = Trained(), Trained(**OTHERS[what])
    for trained in (mine, other):
        trained.fused_steps(4)
    tensors, facts = mine.job.state()
    before = [t.clone() for t in tensors.values()], json.dumps(facts)
    theirs, their_facts = other.job.state()
    differing = {name for name, value in facts["identity"].items() if their_facts["identity"][name] != value}
    assert what.split(".")[0] in differing
    with pytest.raises(StateError, match="another job: ") as caught:
        mine.job.restore(theirs, json.loads(json.dumps(their_facts)))
    assert sorted(differing)[0] in str(caught.value)
    assert all(map(torch.equal, before[0], mine.job.state()[0].values()))
    assert json.dumps(mine.job.state()[1]) == before[1]


def test_a_state_that_is_not_whole_is_refused_and_changes_nothing() -> None:
    mine = Trained()
    mine.fused_steps(4)
    tensors, facts = mine.job.state()
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    progress = facts["progress"]
    short = {name: tensor[:5] if tensor.dim() else tensor for name, tensor in kept.items()}
    bad: list[tuple[dict[str, torch.Tensor], dict[str, Any], str]] = [
        (kept, {**facts, "version": 0}, "version 0"),
        (kept, {**facts, "progress": {**progress, "step": -1}}, "step"),
        (kept, {**facts, "progress": {**progress, "step": 99}}, "outside the job"),
        (kept, {**facts, "progress": {**progress, "loss": "xyz"}}, "loss"),
        (kept, {**facts, "progress": {k: v for k, v in progress.items() if k != "bad"}}, "bad"),
        (kept, {**facts, "progress": {**progress, "rows_done": 0}}, "grads"),
        (kept, {**facts, "identity": None}, "which job"),
        (short, facts, "shape"),
        ({**kept, "params": kept["params"].double()}, facts, "float64"),
        ({name: t for name, t in kept.items() if name != "grads"}, facts, "grads"),
        ({name: t for name, t in kept.items() if name != "optimizer.step"}, facts, "exp_avg"),
    ]
    for some, says, match in bad:
        with pytest.raises(StateError, match=match):
            mine.job.restore(some, says)
    assert all(torch.equal(kept[name], tensor) for name, tensor in mine.job.state()[0].items())
    mine.job.restore(kept, facts)


def test_what_is_restored_is_a_copy() -> None:
    first, second = Trained(), Trained()
    first.fused_steps(7)
    second.job.restore(*first.job.state())
    before = {name: tensor.clone() for name, tensor in first.job.state()[0].items()}
    second.fused_steps()
    assert all(torch.equal(before[name], tensor) for name, tensor in first.job.state()[0].items())

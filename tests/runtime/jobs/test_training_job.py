"""A job's own state: accumulation, schedules, clipping, evaluation, early stopping."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux_runtime.fused.slab import Slab, SlabLayout, TensorSpec
from loramux_runtime.jobs.early_stop import (
    KEPT_LOSSES,
    PREDICT_EVERY,
    LossTail,
    Patience,
    predicted_improvement,
    stop_likelihood,
)
from loramux_runtime.jobs.jobs_file import OptimizerConfig, ScheduleConfig
from loramux_runtime.jobs.optim import JobOptimizer
from loramux_runtime.jobs.training_job import TrainingJob

from .tiny import job, losses, make_run, play, write_rows


def slab() -> Slab:
    made = Slab(SlabLayout((TensorSpec(key="a", shape=(3, 5), parts=(), init="zeros"),)))
    made.params.copy_(torch.arange(16.0))
    return made


@pytest.mark.parametrize("split", [1, 2, 3])
def test_a_split_step_is_the_same_step(tmp_path: Path, split: int) -> None:
    """Dropout goes by sample and the loss by the window's labels: only rounding may differ."""
    data = write_rows(tmp_path)
    whole = make_run([job("a", data, adapter={"dropout": 0.2})])
    parts = make_run([job("a", data, adapter={"dropout": 0.2}, micro_batch_size=split)])
    curves = losses(whole.play()), losses(parts.play())
    assert curves[1]["a"] == pytest.approx(curves[0]["a"], rel=2e-4)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_flat_optimizer_is_torchs_on_separate_tensors(name: Any) -> None:
    mine = slab()
    apart = [torch.nn.Parameter(part.clone()) for part in mine.params.split(4)]
    kind: Any = torch.optim.AdamW if name == "adamw" else torch.optim.SGD
    more: dict[str, Any] = {} if name == "adamw" else {"momentum": 0.5}
    flat = JobOptimizer(mine, OptimizerConfig(name=name, lr=0.1, weight_decay=0.1, **more), ScheduleConfig(), 10)
    theirs = kind(apart, lr=0.1, weight_decay=0.1, **more)
    for step in range(3):
        mine.grads.copy_(torch.sin(torch.arange(16.0) + step))
        for param, grad in zip(apart, mine.grads.split(4), strict=True):
            param.grad = grad.clone()
        theirs.step()
        flat.step(step)
        assert torch.equal(mine.params, torch.cat([p.detach() for p in apart]))
        assert not mine.grads.any()


def test_moving_out_and_in_changes_nothing() -> None:
    mine = slab()
    optimizer = JobOptimizer(mine, OptimizerConfig(), ScheduleConfig(), 10)
    mine.grads.fill_(1.0)
    optimizer.step(0)
    before = {k: v.clone() for k, v in optimizer.state().items()}, mine.params.clone()
    optimizer.to("cpu")
    optimizer.load_state({k: v.clone() for k, v in optimizer.state().items()})
    assert torch.equal(mine.params, before[1])
    assert all(torch.equal(optimizer.state()[k], v) for k, v in before[0].items())


def test_schedules() -> None:
    def rates(name: Any, warmup: int) -> list[float]:
        made = JobOptimizer(slab(), OptimizerConfig(lr=1.0), ScheduleConfig(name=name, warmup_steps=warmup), 10)
        return [made.lr(step) for step in range(11)]

    assert rates("constant", 0) == [1.0] * 11
    assert rates("linear", 0)[::5] == pytest.approx([1.0, 0.5, 0.0])
    assert rates("cosine", 2)[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates("cosine", 2)[10] == pytest.approx(0.0)


def test_clipping_bounds_the_move(tmp_path: Path) -> None:
    """SGD with rate 1 moves the parameters by the clipped gradient."""
    one = {"optimizer": {"name": "sgd", "lr": 1.0}, "steps": 1}
    data = write_rows(tmp_path)
    norm = play([job("a", data, max_grad_norm=None, **one)])[1].training[0]["grad_norm"]

    def moved(limit: float | None) -> float:
        held: list[torch.Tensor] = []
        run = make_run([job("a", data, max_grad_norm=limit, **one)])
        keep = run.host.on_end

        def ended(done: Any, training: Any) -> None:
            held.append(training.adapter.slab.params.clone())
            keep(done, training)

        run.host.on_end = ended
        run.play()
        fresh = run.model.new_adapter("b", "lora", run._configs["a"].adapter_config, seed=0)
        return float((held[0] - fresh.slab.params).norm())

    assert moved(None) == pytest.approx(norm, rel=1e-4)
    assert moved(norm / 10) == pytest.approx(norm / 10, rel=1e-4)
    assert moved(norm * 10) == pytest.approx(norm, rel=1e-4)


def test_patience_stops_after_so_many_bad_evaluations() -> None:
    patience = Patience(2, 0.1)
    assert [patience.see(loss) for loss in (1.0, 0.95, 0.5, 0.45, 0.42)] == [False, False, False, False, True]
    assert not any(Patience(None, 0.0).see(1.0) for _ in range(9))


def test_early_stopping_ends_a_job_before_its_steps(tmp_path: Path) -> None:
    data = write_rows(tmp_path)
    stopping = job(
        "a",
        data,
        data_options={"eval_rows": 4},
        steps=40,
        optimizer={"lr": 1e-9},
        evaluation={"every_steps": 2, "patience": 2, "min_improvement": 0.01},
    )
    _, result = play([stopping])
    assert list(result.jobs["final_state"]) == ["COMPLETED"]
    # the first evaluation is the best, then two that are no better
    assert list(result.jobs["steps_done"]) == [6.0]
    assert result.training[-1]["eval_loss"] == pytest.approx(result.scores["a"]["before"]["loss"], rel=1e-4)


def test_loss_curves_are_fitted() -> None:
    falling = [1.0 / (0.05 * t + 0.5) + 0.3 for t in range(60)]
    gain = predicted_improvement(falling, 10)
    assert gain == pytest.approx(1.0 / (0.05 * 59 + 0.5) - 1.0 / (0.05 * 69 + 0.5), rel=1e-3)
    assert predicted_improvement(falling[:19], 10) is None
    assert stop_likelihood(falling, 10, 0.01) < 0.3 < 0.9 < stop_likelihood([0.5] * 60, 10, 0.01)
    assert stop_likelihood([math.nan] * 60, 10, 0.01) == 0.0


def test_only_the_losses_that_a_prediction_looks_at_are_kept() -> None:
    tail, every = LossTail(), [1.0 / (t + 1) for t in range(1234)]
    for count, loss in enumerate(every, start=1):
        tail.add(loss)
        assert tail.fitted() == every[: count // PREDICT_EVERY * PREDICT_EVERY][-500:], count
    assert tail.epoch == 1234 // PREDICT_EVERY and len(tail.last) == KEPT_LOSSES


def test_held_out_rows_are_scored_before_and_after(tmp_path: Path) -> None:
    data = write_rows(tmp_path)
    _, result = play([job("a", data, data_options={"eval_rows": 4}, steps=30, optimizer={"lr": 0.03})])
    score = result.scores["a"]
    assert score["after"]["loss"] < score["before"]["loss"]
    assert 0.0 <= score["before"]["token_accuracy"] <= score["after"]["token_accuracy"] <= 1.0


def test_an_early_stop_prediction_does_not_depend_on_when_it_is_asked_for(tmp_path: Path) -> None:
    """A replayed run must be told what the recorded one was.

    So must a policy that looks late.
    """
    stops = {"every_steps": 1, "patience": 2}
    run = make_run([job("a", write_rows(tmp_path), data_options={"eval_rows": 4}, evaluation=stops)])
    early, late = (TrainingJob.new(run.model, run._configs["a"], run.data["a"]) for _ in range(2))
    falling = [1.0 / (0.05 * t + 0.5) for t in range(20)]
    for loss in falling:
        early._losses.add(loss)
        late._losses.add(loss)
    assert early.p_stop > 0.0
    for loss in (3.0, 2.0, 3.0, 2.0, 3.0):
        early._losses.add(loss)
        late._losses.add(loss)
    assert early.p_stop == late.p_stop


def test_rows_of_one_token_train_on_nothing_and_break_nothing(tmp_path: Path) -> None:
    """A trace's lengths begin at one token, which has nothing before it to be learned from."""
    shortest = {"synthetic": {"seq_len": 1.2, "length_dist": "uniform"}}
    short = job("a", tmp_path, steps=6, micro_batch_size=1) | {"data": shortest}
    run, result = play([short, job("b", tmp_path) | {"data": {"synthetic": {"seq_len": 9}}}])
    assert 1 in run.data["a"].train.lengths
    assert list(result.jobs["final_state"]) == ["COMPLETED"] * 2
    assert all(loss is not None for curve in losses(result).values() for loss in curve)

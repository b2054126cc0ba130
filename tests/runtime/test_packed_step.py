"""The packed row: no leak between rows or jobs, loss chunks, accumulation, what a step refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from loramux_runtime.fused.packing import MicroBatch, Part

from .matrix import NAMES, batch, fused, grads, parts, rows, shaken, worst, zero_grads


def _changed(micro: MicroBatch, row: int) -> MicroBatch:
    tokens = list(micro.tokens)
    tokens[row] = (tokens[row] + 17) % 61
    return replace(micro, tokens=tuple(tokens))


@pytest.mark.parametrize("exact", [True, False])
def test_a_changed_row_changes_no_other(exact: bool) -> None:
    model = fused(exact=exact)
    jobs = parts(model)
    before = model.logits(jobs)
    target = next(i for i, part in enumerate(jobs) if len(part.batch.tokens) == 3)
    jobs[target] = replace(jobs[target], batch=_changed(jobs[target].batch, 1))
    after = model.logits(jobs)
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        for row, (one, other) in enumerate(zip(old, new, strict=True)):
            assert torch.equal(one, other) == ((i, row) != (target, 1)), (i, row)


def test_a_changed_tail_changes_nothing_before_it() -> None:
    model = fused()
    part = parts(model, ("mixlora",))[0]
    (row, *_) = model.logits([part])[0]
    tokens = part.batch.tokens[0].copy()
    tokens[-1] = (tokens[-1] + 5) % 61
    changed = replace(part, batch=replace(part.batch, tokens=(tokens, *part.batch.tokens[1:])))
    (other, *_) = model.logits([changed])[0]
    # not to the bit: the last token may choose other experts, and products over an expert's tokens
    # round by how many
    torch.testing.assert_close(row[:-1], other[:-1], rtol=0, atol=1e-5)
    assert not torch.allclose(row[-1], other[-1], rtol=0, atol=1e-3)


def test_gradients_do_not_leak_between_jobs() -> None:
    model = fused()
    jobs = parts(model, dropout=0.1)
    model.step(jobs)
    before = [part.adapter.slab.grads.clone() for part in jobs]
    zero_grads(jobs)
    jobs[3] = replace(jobs[3], batch=_changed(jobs[3].batch, 0))
    model.step(jobs)
    for i, (part, old) in enumerate(zip(jobs, before, strict=True)):
        assert torch.equal(part.adapter.slab.grads, old) == (i != 3), part.adapter.job_id


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_loss_chunks_change_only_rounding(chunk: int) -> None:
    jobs = parts(fused(), dropout=0.1, prompt=2)
    whole = fused().step(jobs)
    expected = [grads(part.adapter) for part in jobs]
    zero_grads(jobs)
    for part, one, other, old in zip(jobs, whole, fused(loss_chunk=chunk).step(jobs), expected, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-6)
        assert worst(grads(part.adapter), old) < 1e-5


def test_one_gemm_for_all_jobs_changes_only_rounding() -> None:
    jobs = parts(fused(), dropout=0.1)
    whole = fused(exact=True).step(jobs)
    expected = [grads(part.adapter) for part in jobs]
    zero_grads(jobs)
    for part, one, other, old in zip(jobs, whole, fused(exact=False).step(jobs), expected, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert worst(grads(part.adapter), old) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_an_accumulated_window_is_one_batch(name: str) -> None:
    """Masks stay, cross entropies add up to the window's mean.

    Only auxiliary losses depend on the split.
    """
    model = fused("fp64")
    adapter = shaken(model, name, dropout=0.3)
    config = adapter.config
    for field in ("router_aux_loss_coef", "router_dyn_loss_coef"):
        if hasattr(config, field):
            config = replace(config, **{field: 0.0})
    adapter.config = config
    whole = batch((7, 4, 9, 2), 1, step=3, prompt=1)
    (outcome,) = model.step([Part(adapter=adapter, batch=whole)])
    expected = grads(adapter)
    adapter.slab.grads.zero_()
    total = 0.0
    for chosen in (slice(0, 1), slice(1, 3), slice(3, 4)):
        piece = replace(
            whole,
            tokens=whole.tokens[chosen],
            labels=whole.labels[chosen],
            samples=whole.samples[chosen],
            window_labels=whole.n_labels,
            window_share=sum(map(len, whole.tokens[chosen])) / whole.n_tokens,
        )
        total += model.step([Part(adapter=adapter, batch=piece)])[0].loss
    assert total == pytest.approx(outcome.loss, rel=1e-12)
    assert worst(grads(adapter), expected) < 1e-11


def test_auxiliary_losses_are_weighted_by_the_share_of_the_window() -> None:
    model = fused("fp64")
    for name in ("mixlora", "mola", "dynmole"):
        adapter = shaken(model, name)
        (whole,) = model.step([Part(adapter=adapter, batch=batch((6, 5)))])
        (part,) = model.step([Part(adapter=adapter, batch=batch((6, 5), window_share=0.25))])
        assert part.aux_loss == pytest.approx(whole.aux_loss / 4) and whole.aux_loss > 0


def test_a_batch_without_labels_has_no_loss_and_no_gradient() -> None:
    model = fused()
    for name in ("lora", "loramoe"):
        adapter = shaken(model, name, dropout=0.1)
        (outcome,) = model.step([Part(adapter=adapter, batch=batch((1, 4), prompt=9))])
        assert outcome.loss == 0.0 and not adapter.slab.grads.any()


def test_gradients_add_up() -> None:
    model = fused()
    part = parts(model, ("mixlora",), dropout=0.2)[0]
    model.step([part])
    once = part.adapter.slab.grads.clone()
    model.step([part])
    assert torch.equal(part.adapter.slab.grads, 2 * once) and once.any()


def test_padding_of_ranks_stays_zero() -> None:
    for part in parts(fused(), dropout=0.2):
        slab = part.adapter.slab
        fused().step([part])
        flat = torch.zeros_like(slab.grads)
        inside = slab.layout.views(flat)
        for spec in slab.layout.specs:
            for piece in spec.parts:
                inside[spec.key][piece.index] = 1
        assert not slab.grads[flat == 0].any() and not slab.params[flat == 0].any()


@pytest.mark.parametrize(
    ("tokens", "labels", "samples"),
    [((), (), ()), ((3,), (3,), (0, 1)), ((3,), (2,), (0,)), ((0,), (0,), (0,)), ((2, 2), (2,), (0, 1))],
)
def test_misshapen_batches_are_refused(
    tokens: tuple[int, ...], labels: tuple[int, ...], samples: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="row"):
        MicroBatch(tokens=rows(tokens, 0), labels=rows(labels, 0), samples=samples)


def test_a_job_takes_part_once() -> None:
    model = fused()
    part = parts(model, ("lora",))[0]
    with pytest.raises(ValueError, match="at most once"):
        model.step([part, part])


def test_the_model_runs_only_inside_a_step() -> None:
    with pytest.raises(RuntimeError, match="inside a fused step"):
        fused().base.hf(torch.from_numpy(np.arange(4))[None], use_cache=False)

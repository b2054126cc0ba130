"""Statistics of the dropout masks, and what they depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from loramux_runtime.fused.kernels.dropout import DropKey, row_keys, site_key, threshold
from loramux_runtime.fused.packing import Part

from .matrix import batch, fused, parts, shaken

ROWS, CHANNELS = 512, 512


def _mask(
    p: float, *, seed: int = 1, step: int = 0, layer: int = 0, name: str = "q_proj", sample: int = 0, first: int = 0
) -> Tensor:
    """[ROWS, CHANNELS]: positions `first` on of one sample."""
    keys = row_keys(seed, step, np.full(ROWS, sample), np.arange(first, first + ROWS))
    limit = torch.tensor([[threshold(p)]], dtype=torch.int32)
    return DropKey(torch.from_numpy(keys), site_key(layer, name), limit).mask(CHANNELS)


def _correlation(one: Tensor, other: Tensor) -> float:
    """In standard errors of independent masks."""
    pair = torch.stack([one.flatten(), other.flatten()]).double()
    return float(torch.corrcoef(pair)[0, 1]) * math.sqrt(one.numel())


@pytest.mark.parametrize("p", [0.001, 0.05, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_the_keep_rate_is_binomial(p: float) -> None:
    """Over everything, by row and by channel, for several sites and seeds; 5 standard errors."""
    rates = torch.stack([_mask(p, seed=s, layer=s).double() for s in range(4)])
    for mean, n in ((rates.mean((0, 1, 2)), rates.numel()), (rates.mean((1, 2)), ROWS * CHANNELS)):
        assert ((mean - (1 - p)).abs() < 5 * math.sqrt(p * (1 - p) / n)).all()
    # the spread of rows' and channels' rates is the binomial one
    for dim, n in ((1, ROWS), (2, CHANNELS)):
        if n * min(p, 1 - p) > 20:
            spread = float(rates.mean(dim).std()) / math.sqrt(p * (1 - p) / n)
            assert 0.93 < spread < 1.07


@pytest.mark.parametrize("p", [0.05, 0.5])
@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2}, {"step": 1}, {"layer": 1}, {"name": "k_proj"}, {"name": "up_proj"}, {"sample": 1},
        {"sample": 1 << 33}, {"first": ROWS}, {"first": 1}, {"seed": -1}, {"step": 1, "sample": 1},
    ],
    ids=str,
)  # fmt: skip
def test_masks_of_other_keys_are_independent(other: dict[str, int], p: float) -> None:
    assert abs(_correlation(_mask(p), _mask(p, **other))) < 4.5  # type: ignore[arg-type]


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_rows_and_channels_are_independent(p: float) -> None:
    mask = _mask(p).double()
    for table, n in ((mask, CHANNELS), (mask.t(), ROWS)):
        pairs = torch.corrcoef(table)[torch.triu(torch.ones(len(table), len(table)), 1).bool()] * math.sqrt(n)
        assert 0.97 < float(pairs.std()) < 1.03 and float(pairs.abs().max()) < 7
    for lag in (1, 2, 4, 8, 16, 32, 64, 256):
        assert abs(_correlation(mask[:, lag:], mask[:, :-lag])) < 4.5
        assert abs(_correlation(mask[lag:], mask[:-lag])) < 4.5


def test_the_same_key_gives_the_same_mask_and_limits_are_nested() -> None:
    assert torch.equal(_mask(0.3), _mask(0.3))
    assert _mask(0.0).all() and (_mask(0.5) <= _mask(0.2)).all()
    assert _mask(1 - 1e-12).float().mean() < 1e-3


def test_a_jobs_masks_do_not_depend_on_the_packing() -> None:
    """Losses of a step with strong dropout.

    The same bits alone, behind others, and with rows in another order.
    """
    model = fused()
    adapter = shaken(model, "mixlora", dropout=0.6)
    micro = batch((9, 4), 2, step=1)
    (alone,) = model.step([Part(adapter=adapter, batch=micro)])
    behind = model.step(
        [*parts(model, ("lora", "mixlora", "dynmole"), dropout=0.4), Part(adapter=adapter, batch=micro)]
    )
    assert behind[-1] == alone
    turned = type(micro)(
        tokens=micro.tokens[::-1], labels=micro.labels[::-1], samples=micro.samples[::-1], step=micro.step
    )
    (other,) = model.step([Part(adapter=adapter, batch=turned)])
    assert other.loss == pytest.approx(alone.loss, rel=1e-6)


@pytest.mark.parametrize("key", ["seed", "step", "sample"])
def test_another_key_gives_another_loss(key: str) -> None:
    model = fused()
    losses = set()
    for value in range(4):
        adapter = shaken(model, "lora", dropout=0.3)
        adapter.seed = value if key == "seed" else 0
        micro = batch((9,), 2)
        samples = (value,) if key == "sample" else (0,)
        micro = type(micro)(
            tokens=micro.tokens, labels=micro.labels, samples=samples, step=value if key == "step" else 0
        )
        losses.add(model.step([Part(adapter=adapter, batch=micro)])[0].loss)
    assert len(losses) == 4


def test_dropout_changes_training_and_nothing_at_p_0() -> None:
    """A peer that drops shares the GEMMs of one that does not.

    The latter's bits are those without any dropout.
    """
    model = fused()
    still = Part(adapter=shaken(model, "lora", dropout=0.0, job="still"), batch=batch((9,), 2))
    (alone,) = model.step([still])
    grads = still.adapter.slab.grads.clone()
    still.adapter.slab.grads.zero_()
    wet = Part(adapter=shaken(model, "lora", dropout=0.5, job="wet"), batch=batch((9,), 2))
    dropped, same = model.step([wet, still])
    assert same == alone and torch.equal(still.adapter.slab.grads, grads)
    assert dropped.loss != alone.loss
    assert model.score(wet.adapter, wet.batch).loss == model.score(still.adapter, still.batch).loss

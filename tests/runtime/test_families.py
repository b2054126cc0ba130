"""Every family of base models.

A fresh adapter is the plain Hugging Face model, and every method trains.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loramux_runtime.fused.base_config import FAMILIES
from loramux_runtime.fused.base_model import BaseModel
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import Part

from .gradients import check, hold_norms
from .matrix import NAMES, batch, build, case, grads, shaken
from .reference import plain_model

CHANGES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 6},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "phi3": {"sliding_window": 7, "original_max_position_embeddings": 64, "max_position_embeddings": 64},
}
"""Windows are shorter than the longest row."""


def _base(family: str, dtype: Any = "fp32") -> BaseModel:
    return build(family, dtype, head_dim=6, **CHANGES.get(family, {}))


def _jobs(model: FusedModel, *, fresh: bool) -> list[Part]:
    """All cases."""
    found = []
    for i, name in enumerate(NAMES):
        adapter = model.new_adapter(name, *case(name)) if fresh else shaken(model, name, dropout=0.1)
        found.append(Part(adapter=adapter, batch=batch((19, 2 + i), i)))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_adapters_are_the_plain_model(family: str) -> None:
    model = FusedModel(_base(family))
    plain = plain_model(model.base)
    jobs = _jobs(model, fresh=True)
    for part, logits in zip(jobs, model.logits(jobs), strict=True):
        for row, mine in zip(part.batch.tokens, logits, strict=True):
            with torch.no_grad():
                expected = plain(torch.from_numpy(row)[None], use_cache=False).logits[0]
            scale = max(1.0, float(expected.abs().max()))
            assert float((mine - expected).abs().max()) < 1e-5 * scale, part.adapter.job_id


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_trains(family: str) -> None:
    """Every tensor that is not one expert's gets a gradient.

    A step down the gradient lowers the loss.
    """
    model = FusedModel(_base(family))
    jobs = _jobs(model, fresh=False)
    before = model.step(jobs)
    for part in jobs:
        found = grads(part.adapter)
        silent = [name for name, grad in found.items() if not grad.any() and "experts" not in name]
        assert not silent, part.adapter.job_id
        slab = part.adapter.slab
        slab.params.add_(slab.grads, alpha=-0.05 / float(slab.grads.norm()))
        slab.version += 1
    after = model.step(jobs)
    for part, old, new in zip(jobs, before, after, strict=True):
        assert new.loss + new.aux_loss < old.loss + old.aux_loss, part.adapter.job_id


@pytest.mark.parametrize("name", ["dora", "mixlora", "mixlora-dora", "dynmole"])
@pytest.mark.parametrize("family", ["phi3", "qwen2"])
def test_gradcheck_with_fused_projections_biases_and_windows(
    family: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_norms(monkeypatch)
    model = FusedModel(_base(family, "fp64"))
    for parameter in model.base.hf.parameters():  # fresh models have zero biases
        if parameter.dim() == 1:
            parameter.add_(torch.linspace(0, 0.3, len(parameter), dtype=parameter.dtype))
    assert check(model, [Part(adapter=shaken(model, name, dropout=0.2, seed=2), batch=batch((9, 3), 1))], 0)

"""A bf16 base with fp32 masters: every method's loss and gradients stay near those of float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from loramux_runtime.fused.model import FusedModel

from .matrix import build, fused, parts, zero_grads


@pytest.mark.parametrize("recompute", [False, True])
def test_bf16_is_near_float32(recompute: bool) -> None:
    exact = fused()
    half = FusedModel(build("llama", "bf16"), recompute=recompute)
    half.base.hf.load_state_dict(exact.base.hf.state_dict())
    jobs = parts(exact, dropout=0.1)
    expected = exact.step(jobs)
    kept = [part.adapter.slab.grads.clone() for part in jobs]
    zero_grads(jobs)
    for part, one, other, grad in zip(jobs, expected, half.step(jobs), kept, strict=True):
        assert part.adapter.slab.params.dtype == torch.float32
        assert other.loss == pytest.approx(one.loss, rel=0.03), part.adapter.job_id
        assert other.aux_loss == pytest.approx(one.aux_loss, rel=0.05), part.adapter.job_id
        assert F.cosine_similarity(part.adapter.slab.grads, grad, dim=0) > 0.9, part.adapter.job_id

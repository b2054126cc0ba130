"""On a CUDA device the fused step agrees with the CPU reference and trains in bf16.

It synchronises with the host once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gpu.workload import METHODS, TINY
from loramux_runtime.fused.base_model import BaseModel, build_base, shape_config
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import MicroBatch, Part

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NO_DROPOUT = {name: replace(config, dropout=0.0) for name, config in METHODS.items()}


def base(device: str, dtype: Any) -> BaseModel:
    # weights from the CPU's generator: the same on both devices
    made = build_base(shape_config("llama-7b", **TINY), dtype=dtype)
    made.hf.to(device)
    weights = {place: weight.to(device) for place, weight in made.weights.items()}
    return replace(made, device=torch.device(device), weights=weights)


def parts(model: FusedModel, configs: dict[str, Any]) -> list[Part]:
    made = []
    for i, (method, config) in enumerate(configs.items()):
        rng = np.random.default_rng(i)
        rows = tuple(rng.integers(0, 256, n) for n in (7 + i, 30, 3))
        adapter = model.new_adapter(method, method, config, seed=i)
        noise = torch.randn(adapter.slab.params.shape, generator=torch.Generator().manual_seed(i)) * 0.02
        adapter.slab.params.add_(noise.to(adapter.slab.params.device))
        adapter.slab.version += 1
        made.append(Part(adapter=adapter, batch=MicroBatch(tokens=rows, labels=rows, samples=(0, 1, 2))))
    return made


@pytest.fixture(autouse=True)
def no_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("configs", [METHODS, NO_DROPOUT], ids=["dropout", "no dropout"])
def test_fp32_agrees_with_the_cpu(configs: dict[str, Any]) -> None:
    """Dropout masks are computed from keys, so they are the same on both."""
    results = []
    for device in ("cpu", "cuda"):
        model = FusedModel(base(device, "fp32"))
        made = parts(model, configs)
        outcomes = model.step(made)
        grads = {part.adapter.job_id: part.adapter.slab.grads.cpu() for part in made}
        results.append(([o.loss for o in outcomes], grads))
    (cpu_losses, cpu_grads), (gpu_losses, gpu_grads) = results
    assert gpu_losses == pytest.approx(cpu_losses, rel=1e-4)
    for job_id, grad in cpu_grads.items():
        assert torch.allclose(gpu_grads[job_id], grad, rtol=1e-3, atol=1e-4 * float(grad.abs().max()))


def test_fused_equals_alone_in_fp32() -> None:
    model = FusedModel(base("cuda", "fp32"))
    together = parts(model, METHODS)
    losses = [outcome.loss for outcome in model.step(together)]
    for part, loss in zip(parts(model, METHODS), losses, strict=True):
        assert model.step([part])[0].loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("method", list(METHODS))
def test_bf16_trains(method: str) -> None:
    model = FusedModel(base("cuda", "bf16"))
    (part,) = parts(model, {method: METHODS[method]})
    param = torch.nn.Parameter(part.adapter.slab.params)
    optimizer = torch.optim.AdamW([param], lr=1e-2)
    losses = []
    for step in range(12):
        losses.append(model.step([Part(adapter=part.adapter, batch=replace(part.batch, step=step))])[0].loss)
        param.grad = part.adapter.slab.grads
        optimizer.step()
        part.adapter.slab.version += 1
        part.adapter.slab.grads.zero_()
    assert losses[-1] < losses[0]
    assert all(np.isfinite(losses))


def test_the_step_waits_for_the_device_only_at_its_end() -> None:
    """Forward and backward launch without a single synchronisation.

    Reading the losses is the first.
    """
    model = FusedModel(base("cuda", "bf16"))
    made = parts(model, METHODS)
    model.step(made)
    layout = model.layout(made)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.forward_backward(layout)
    finally:
        torch.cuda.set_sync_debug_mode("default")

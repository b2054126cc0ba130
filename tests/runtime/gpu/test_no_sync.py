"""Forward and backward of a fused step never wait for the device.

Written without one at hand: run it first on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.gpu

METHODS = ("lora", "mixlora", "mola", "loramoe", "dynmole")


@pytest.fixture
def work() -> tuple[Any, list[Any]]:
    """A small llama in bf16 on the GPU, two jobs of each method in one step."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from transformers import AutoConfig

    from loramux_runtime.fused.adapters.methods import METHODS as KNOWN
    from loramux_runtime.fused.base_model import build_base
    from loramux_runtime.fused.model import FusedModel
    from loramux_runtime.fused.packing import MicroBatch, Part

    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 1000}
    config = AutoConfig.for_model("llama", num_attention_heads=4, num_key_value_heads=2, **shape)
    model = FusedModel(build_base(config, dtype="bf16", device="cuda"))
    rng = np.random.default_rng(0)
    parts = []
    for i, method in enumerate(METHODS * 2):
        adapter = model.new_adapter(f"job-{i}", method, KNOWN[method].config_type(dropout=0.05 * (1 + i % 2)), seed=i)
        rows = tuple(rng.integers(0, 1000, n) for n in (5, 33))
        parts.append(Part(adapter=adapter, batch=MicroBatch(tokens=rows, labels=rows, samples=(0, 1))))
    return model, parts


def test_no_synchronisation_inside_the_step(work: tuple[Any, list[Any]]) -> None:
    from loramux_runtime.fused.context import running_step

    model, parts = work
    model.step(parts)  # libraries initialise themselves, channel keys are copied once
    layout = model.layout(parts)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with running_step(layout) as context:
            losses, aux = model._losses(layout, context)
            torch.autograd.backward(losses.sum() + sum(a.sum() for a in aux if a is not None))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(losses).all()

"""Peak memory of a fused step against as many separate runs, by tracking live storages; run by hand, no GPU needed.

    python tests/benchmarks/bench_memory.py [--shape llama-7b] [--layers N] [--json FILE]

The step really runs, on fake tensors (shapes and storages without data), so that a 7B model fits anywhere. Counted:
frozen weights, adapters in fp32 with gradients and both AdamW moments, and everything the step keeps or makes for a
moment. `--check` runs a small model on real and on fake tensors and compares the peaks.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from storage_tracker import StorageTracker
from torch._subclasses.fake_tensor import FakeTensorMode

from loramux_runtime.adapters.dynmole.config import DynMoleConfig
from loramux_runtime.adapters.lora.config import LoraConfig
from loramux_runtime.adapters.mixlora.config import MixLoraConfig
from loramux_runtime.base_model import build_base, shape_config
from loramux_runtime.context import running_step
from loramux_runtime.kernels import dropout
from loramux_runtime.model import FusedModel
from loramux_runtime.packing import MicroBatch, Part

MIB = 1 << 20
METHODS: dict[str, Any] = {
    "lora": LoraConfig(rank=16, alpha=32, dropout=0.05),
    "mixlora": MixLoraConfig(rank=16, alpha=32, dropout=0.05),
    "dynmole": DynMoleConfig(rank=24, alpha=48, dropout=0.05),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Bytes of one run."""

    weights: int
    state: int
    """Adapters, gradients, moments."""
    step: int
    """What the step needs on top at its peak."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.state + self.step


def measure(
    shape: str, method: str, jobs: int, rows: tuple[int, int], *, recompute: bool, fake: bool = True, **changes: Any
) -> Peak:
    """One fused step of `jobs` jobs with rows[0] rows of rows[1] tokens each."""
    gc.collect()
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext()
    tracker = StorageTracker()
    # Module.to swaps parameters in place, which fake tensors refuse; the model is made where it belongs
    stay = patch("transformers.PreTrainedModel.to", lambda model, *_: model)
    with mode, tracker, stay:
        base = build_base(shape_config(shape, **changes), dtype="bf16")
        weights = tracker.live
        # exact=False and groups of jobs: what runs on a device that this stands for
        model = FusedModel(base, exact=False, recompute=recompute)
        adapters = [model.new_adapter(f"job-{i}", method, METHODS[method], seed=i) for i in range(jobs)]
        optimizers = []
        for adapter in adapters:
            flat = torch.nn.Parameter(adapter.slab.params)
            flat.grad = adapter.slab.grads
            optimizers.append(torch.optim.AdamW([flat], fused=True))
            optimizers[-1].step()  # makes the moments
        state = tracker.live - weights
    ids = np.zeros(rows[1], dtype=np.int64)
    parts = [
        Part(
            adapter=a, batch=MicroBatch(tokens=(ids,) * rows[0], labels=(ids,) * rows[0], samples=tuple(range(rows[0])))
        )
        for a in adapters
    ]
    layout = model.layout(parts)
    for group in layout.groups:
        _ = group.job_of_row  # made on the host: its shape depends on data, which fake tensors do not have
    tracker.restart()
    blocks = patch.object(dropout, "_BLOCK", dropout._BLOCK_DEVICE)  # the fake device is called "cpu"
    with mode, tracker, blocks:
        with running_step(layout) as context:
            losses, aux = model._losses(layout, context)
            torch.autograd.backward(losses.sum() + sum(a.sum() for a in aux if a is not None))
        for optimizer in optimizers:
            optimizer.step()
    return Peak(weights=weights, state=state, step=tracker.peak - weights - state)


def table(shape: str, **changes: Any) -> list[dict[str, Any]]:
    """Fused against separate runs for each method, batch and recomputation."""
    print(f"{shape} in bf16, 4 jobs, MiB{' ' + str(changes) if changes else ''}")
    print(f"{'':42}{'weights':>9}{'state':>8}{'step':>9}{'fused':>9}{'4 alone':>9}{'share':>8}{'seconds':>9}")
    found = []
    for rows in ((4, 200), (4, 512)):
        for method in METHODS:
            for recompute in (False, True):
                start = time.time()
                fused = measure(shape, method, 4, rows, recompute=recompute, **changes)
                alone = measure(shape, method, 1, rows, recompute=recompute, **changes)
                share = fused.total / (4 * alone.total)
                name = f"{method}, {4 * rows[0] * rows[1]:,} tokens{', recompute' if recompute else ''}"
                print(
                    f"  {name:40}{fused.weights / MIB:9,.0f}{fused.state / MIB:8,.0f}{fused.step / MIB:9,.0f}"
                    f"{fused.total / MIB:9,.0f}{4 * alone.total / MIB:9,.0f}{share:8.1%}{time.time() - start:9.0f}",
                    flush=True,
                )
                found.append(
                    {
                        "method": method,
                        "jobs": 4,
                        "rows": rows[0],
                        "tokens_per_row": rows[1],
                        "recompute": recompute,
                        "weights": fused.weights,
                        "state": fused.state,
                        "step": fused.step,
                        "fused": fused.total,
                        "alone": alone.total,
                        "share": share,
                    }
                )
    return found


def check() -> None:
    """Fake and real peaks of a small model, method by method."""
    small = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 2, "vocab_size": 1000}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64}
    for method in METHODS:
        peaks = [measure("llama-7b", method, 3, (2, 40), recompute=False, fake=fake, **small) for fake in (True, False)]
        print(
            f"{method:10} fake {peaks[0].total:12,}  real {peaks[1].total:12,}  {peaks[0].total / peaks[1].total:.4f}"
        )


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-7b")
    parser.add_argument("--layers", type=int, help="fewer layers, for a quick look")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.check:
        check()
        return
    changes = {"num_hidden_layers": options.layers} if options.layers else {}
    lines = table(options.shape, **changes)
    if options.json:
        document = {"measured": "live storages of a step on fake tensors, 512-byte rounding", "shape": options.shape}
        options.json.write_text(json.dumps({**document, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Where the time of a fused step goes.

By phase (timers) and by kind of operation (torch.profiler).
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from loramux_runtime.fused.adapters.dynmole.config import DynMoleConfig
from loramux_runtime.fused.adapters.lora.config import LoraConfig
from loramux_runtime.fused.adapters.mixlora.config import MixLoraConfig
from loramux_runtime.fused.context import running_step
from runtime_work import SHAPE, Fused, build, mixed_rows, real_tokens

GEMMS = ("aten::mm", "aten::addmm", "aten::addmm_")
KINDS: dict[str, tuple[str, ...]] = {
    "attention": ("scaled_dot_product",),
    "dropout masks (integer operations)": ("bitwise", "rshift", "aten::sub"),
    "gathers, sorts": ("index", "sort", "gather", "scatter", "topk", "searchsorted", "aten::cat"),
    "activation, softmax, loss": ("silu", "exp", "softmax", "log", "pow", "rsqrt", "amax"),
    "optimizer": ("adam",),
    "other elementwise, copies, fills": ("aten::mul", "aten::add", "copy", "fill", "zero", "aten::sum", "neg", "mean"),
}


def _kind(event: Any) -> str:
    name = event.key
    if name in GEMMS:
        sizes = {n for shape in event.input_shapes if len(shape) == 2 for n in shape}
        if SHAPE["vocab_size"] in sizes:
            return "GEMM: head (loss)"
        frozen = {SHAPE["hidden_size"], SHAPE["intermediate_size"]}
        weights = [shape for shape in event.input_shapes if len(shape) == 2 and set(shape) <= frozen]
        return "GEMM: frozen linears" if weights else "GEMM: adapters, routers"
    for kind, parts in KINDS.items():
        if any(part in name.lower() for part in parts):
            return kind
    return "dispatch, autograd, views, allocation"


def profile_step(method: str, tokens: int = 256) -> dict[str, Any]:
    """Profile 4 jobs of a method with `tokens` tokens each, dropout 0.05."""
    jobs: dict[str, Any] = {
        "lora": LoraConfig(rank=64, alpha=64),
        "mixlora": MixLoraConfig(rank=8, alpha=8, attention=LoraConfig(rank=64, alpha=64, target_modules="attention")),
        "dynmole": DynMoleConfig(rank=8, alpha=8, num_experts=8),
    }
    rows = mixed_rows((tokens // 4,) * 4, spread=0.0)
    fused = Fused(build(), [(method, jobs[method])] * 4, rows)
    fused()
    fused()
    phases: Counter[str] = Counter()
    repeats = 3
    for _ in range(repeats):
        marks = [time.process_time()]
        layout = fused.model.layout(fused.parts())
        marks.append(time.process_time())
        with running_step(layout) as context:
            losses, aux = fused.model._losses(layout, context)
            marks.append(time.process_time())
            torch.autograd.backward(losses.sum() + sum(a.sum() for a in aux if a is not None))
        marks.append(time.process_time())
        for adapter, optimizer in zip(fused.adapters, fused.optimizers, strict=True):
            optimizer.step()
            adapter.slab.grads.zero_()
        marks.append(time.process_time())
        names = ("layout", "forward (head's gradient included)", "backward", "optimizer")
        for name, a, b in zip(names, marks, marks[1:], strict=False):
            phases[name] += (b - a) * 1e3 / repeats
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        fused()
    kinds: Counter[str] = Counter()
    for event in found.key_averages(group_by_input_shape=True):
        kinds[_kind(event)] += event.self_cpu_time_total / 1e3
    total = sum(kinds.values())
    print(f"\nProfile of {method}: 4 jobs x {tokens} tokens ({real_tokens(rows)}), dropout 0.05, one step")
    for name, ms in phases.items():
        print(f"  {name:42}{ms:8.0f} ms{ms / sum(phases.values()):8.1%}")
    print("  by operation (profiler on):")
    for name, ms in kinds.most_common():
        print(f"  {name:42}{ms:8.0f} ms{ms / total:8.1%}")
    return {"title": f"profile {method}", "phases_ms": dict(phases), "kinds_ms": dict(kinds)}

"""The methods every test of the runtime runs over, tiny bases, and micro-batches.

A new method adds its lines here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from types import MethodType
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from loramux_runtime.fused.adapters.base import Adapter
from loramux_runtime.fused.adapters.dynmole.config import DynMoleConfig
from loramux_runtime.fused.adapters.lora.config import LoraConfig
from loramux_runtime.fused.adapters.mixlora.config import MixLoraConfig
from loramux_runtime.fused.adapters.mola.config import LoraMoeConfig, MolaConfig
from loramux_runtime.fused.base_model import BaseModel, build_base
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import IGNORED, MicroBatch, Part

LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Neither the hidden nor the FFN size is a multiple of 16; weights large enough for logits that
matter.
"""

_ATTENTION = LoraConfig(rank=2, alpha=4.0, target_modules="attention")

CASES: dict[str, tuple[str, Any]] = {
    "lora": ("lora", LoraConfig(rank=5, alpha=10.0)),
    "rslora": ("lora", LoraConfig(rank=4, alpha=6.0, use_rslora=True, target_modules="qv")),
    "dora": ("lora", LoraConfig(rank=3, alpha=6.0, use_dora=True)),
    "mixlora": ("mixlora", MixLoraConfig(rank=3, alpha=6.0, num_experts=4, attention=_ATTENTION)),
    "mixlora-part": (
        "mixlora",
        MixLoraConfig(
            rank=4, alpha=4.0, num_experts=3, top_k=1, expert_modules=("gate_proj",), attention=None, use_rslora=True
        ),
    ),
    "mixlora-dora": (
        "mixlora",
        MixLoraConfig(rank=2, alpha=4.0, num_experts=3, use_dora=True, attention=replace(_ATTENTION, use_dora=True)),
    ),
    "mola": ("mola", MolaConfig(rank=2, alpha=4.0, num_experts=(2, 4), router_aux_loss_coef=0.02)),
    "loramoe": ("loramoe", LoraMoeConfig(rank=3, alpha=6.0, num_experts=3)),
    "dynmole": ("dynmole", DynMoleConfig(rank=2, alpha=4.0, num_experts=5, entropy_threshold=0.8)),
    "dynmole-shannon": (
        "dynmole",
        DynMoleConfig(
            rank=2,
            alpha=4.0,
            num_experts=4,
            entropy_index=1.0,
            entropy_eps=0.0,
            entropy_threshold=2.0,
            keep_top_k=1,
            top_p=0.6,
            inclusive_nucleus=True,
            renormalise=True,
            normalised_entropy=False,
        ),
    ),
}
NAMES = tuple(CASES)


def case(name: str, dropout: float = 0.0) -> tuple[str, Any]:
    """(method, configuration) with this dropout everywhere."""
    method, config = CASES[name]
    return method, with_dropout(config, dropout)


def with_dropout(config: Any, dropout: float) -> Any:
    """The configuration with this dropout, attention's included."""
    changes: dict[str, Any] = {"dropout": dropout}
    if getattr(config, "attention", None) is not None:
        changes["attention"] = replace(config.attention, dropout=dropout)
    return replace(config, **changes)


@cache
def base(dtype: Any = "fp32", **changes: Any) -> BaseModel:
    """A frozen tiny llama with random weights; tests share it."""
    return build("llama", dtype, **changes)


def build(family: str, dtype: Any = "fp32", **changes: Any) -> BaseModel:
    """A frozen tiny model of a family with random weights."""
    built = build_base(AutoConfig.for_model(family, **{**LLAMA, **changes}), dtype=dtype)
    if dtype == "fp64":
        wide_norms(built.hf)
    return built


def wide_norms(hf: Any) -> None:
    """transformers computes norms in float32 whatever the model's dtype.

    In float64 models that noise is too much.
    """
    for module in hf.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = MethodType(_rms_norm, module)


def _rms_norm(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    scaled: torch.Tensor = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * scaled


def fused(dtype: Any = "fp32", **options: Any) -> FusedModel:
    """The tiny llama, ready for steps."""
    return FusedModel(base(dtype=dtype), **options)


def rows(lengths: Sequence[int], seed: int, vocab: int = 61) -> tuple[np.ndarray[Any, np.dtype[np.int64]], ...]:
    """Random token rows."""
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(3, vocab, n) for n in lengths)


def batch(
    lengths: Sequence[int], seed: int = 0, *, step: int = 0, prompt: int = 0, vocab: int = 61, **options: Any
) -> MicroBatch:
    """A micro-batch; the first `prompt` tokens of each row are not learned."""
    tokens = rows(lengths, seed, vocab)
    labels = tuple(np.where(np.arange(len(row)) < prompt, IGNORED, row) for row in tokens)
    samples = tuple(range(step * len(lengths), (step + 1) * len(lengths)))
    return MicroBatch(tokens=tokens, labels=labels, samples=samples, step=step, **options)


def shake(adapter: Adapter, seed: int = 0, std: float = 0.2) -> Adapter:
    """Add noise to every parameter (B is zero at first), padding of ranks left alone."""
    generator = torch.Generator().manual_seed(seed)
    for view in adapter.slab.named_parts().values():
        view.add_(torch.randn(view.shape, generator=generator, dtype=view.dtype), alpha=std)
    adapter.slab.version += 1
    return adapter


def shaken(
    model: FusedModel, name: str, *, dropout: float = 0.0, seed: int = 0, job: str = "", std: float = 0.2
) -> Adapter:
    """An adapter of a case with random parameters."""
    return shake(model.new_adapter(job or name, *case(name, dropout), seed=seed), seed + 1, std)


def parts(model: FusedModel, names: Sequence[str] = NAMES, *, dropout: float = 0.0, **options: Any) -> list[Part]:
    """One part per case, each of another length."""
    found = []
    for i, name in enumerate(names):
        own = NAMES.index(name)
        lengths = ((2 + own, 9), (5,), (13, 3, 4))[own % 3]
        adapter = shaken(model, name, dropout=dropout, seed=own, job=f"{name}-{i}")
        found.append(Part(adapter=adapter, batch=batch(lengths, own, **options)))
    return found


def zero_grads(some: Sequence[Part]) -> None:
    """Forget the gradients."""
    for part in some:
        part.adapter.slab.grads.zero_()


def grads(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Copies of an adapter's gradients."""
    return {name: grad.clone() for name, grad in adapter.slab.named_grads().items()}


def worst(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest difference of any gradient, relative to the largest gradient."""
    assert mine.keys() == theirs.keys()
    largest = max(float(value.abs().max()) for value in theirs.values())
    assert largest > 0
    return max(float((mine[name] - theirs[name]).abs().max()) for name in theirs) / largest

"""Every method written out densely on Hugging Face's own eager model.

One row at a time, autograd, no fusion.

Masks are the product's (`kernels.dropout`), everything else is the formulas of the papers, expert
by expert.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from loramux_runtime.fused.adapters.base import Adapter
from loramux_runtime.fused.base_model import BaseModel
from loramux_runtime.fused.kernels.dropout import DropKey, row_keys, site_key, threshold
from loramux_runtime.fused.packing import IGNORED, MicroBatch

from .matrix import wide_norms

FFN = ("gate_proj", "up_proj", "down_proj")


def plain_model(base: BaseModel) -> Any:
    """The base as transformers makes it.

    Eager attention, in float64 (where eager goes through float32) SDPA.
    """
    config = copy.deepcopy(base.hf.config)
    auto: Any = AutoModelForCausalLM
    wide = base.dtype == torch.float64
    model = auto.from_config(config, dtype=base.dtype, attn_implementation="sdpa" if wide else "eager").eval()
    if wide:
        wide_norms(model)
    state = {}
    for name, value in base.hf.state_dict().items():
        for ours, theirs in ((".layer.", "."), (".linears.", "."), (".linear.", ".")):
            name = name.replace(ours, theirs)
        state[name] = value
    model.load_state_dict(state)
    return model.requires_grad_(False)


class Reference:
    """A job computed by itself: `loss`, `aux`, `logits` and gradients by autograd."""

    def __init__(self, base: BaseModel, adapter: Adapter) -> None:
        self.adapter, self.config, self.method = adapter, adapter.config, adapter.method.name
        self.weights = {
            name: view.detach().clone().requires_grad_() for name, view in adapter.slab.named_parts().items()
        }
        self.model = plain_model(base)
        self.routed: dict[tuple[int, str], list[Tensor]] = {}
        """By (layer, linear or ""), for each row: the probabilities, then the weights of tokens."""
        for index, layer in enumerate(self.model.model.layers):
            for block in ("self_attn", "mlp"):
                for name, linear in list(getattr(layer, block).named_children()):
                    if isinstance(linear, nn.Linear):
                        setattr(getattr(layer, block), name, _Linear(self, index, block, name, linear))
            if self.method == "mixlora":
                layer.mlp = _Mixture(self, index, layer.mlp)

    def run(self, batch: MicroBatch, *, training: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(loss, auxiliary loss, logits of each row)."""
        self.routed.clear()
        logits = []
        total = torch.zeros((), dtype=torch.float64)
        for tokens, labels, sample in zip(batch.tokens, batch.labels, batch.samples, strict=True):
            at = np.arange(len(tokens))
            keys = row_keys(self.adapter.seed, batch.step, np.full(len(tokens), sample), at)
            self.keys = torch.from_numpy(keys) if training else None
            out = self.model(torch.from_numpy(tokens)[None], use_cache=False).logits[0]
            logits.append(out)
            wanted = torch.from_numpy(labels)[1:]
            total = total + F.cross_entropy(out[:-1], wanted, ignore_index=IGNORED, reduction="sum")
        return total / max(1, batch.n_labels), self.aux(), logits

    def part(self, layer: int, block: str, name: str, rest: str) -> Tensor | None:
        """A tensor of the adapter by place."""
        prefix = "base_model.model.model" if self.method == "lora" else self.method
        return self.weights.get(f"{prefix}.layers.{layer}.{block}.{name}{rest}")

    def drop(self, x: Tensor, layer: int, name: str, p: float) -> Tensor:
        """Inverted dropout with the job's masks."""
        if self.keys is None or p == 0:
            return x
        limit = torch.tensor([[threshold(p)]], dtype=torch.int32)
        return x * DropKey(self.keys, site_key(layer, name), limit).mask(x.shape[-1]) / (1 - p)

    def note(self, layer: int, name: str, p: Tensor, w: Tensor) -> None:
        """Remember a router's answers."""
        self.routed.setdefault((layer, name), []).append(torch.stack([p, w]))

    def aux(self) -> Tensor:
        """The auxiliary loss over all tokens and routers of the batch."""
        config = self.config
        each = [torch.cat(rows, 1) for rows in self.routed.values()]
        zero = torch.zeros((), dtype=torch.float64)
        if self.method in ("mixlora", "mola"):
            total, routers = zero, len(each)
            for experts in {p.shape[2] for p in each}:
                same = [p for p in each if p.shape[2] == experts]
                p, w = torch.cat(same, 1)
                f = (w > 0).to(p.dtype).mean(0)
                total = total + experts * (f * p.mean(0)).sum() * len(same) / routers
            return config.router_aux_loss_coef * total
        if self.method == "dynmole":
            p, w = torch.cat(each, 1)
            balance = config.num_experts * (w.mean(0) * p.mean(0)).sum()
            entropies = torch.stack([_entropy(row, config) for row in p])
            return config.router_dyn_loss_coef * entropies.mean() + config.router_aux_loss_coef * balance
        return zero


def _entropy(p: Tensor, config: Any) -> Tensor:
    q, experts = config.entropy_index, len(p)
    if q == 1:
        value, most = -(p * p.log()).sum(), float(np.log(experts))
    else:
        value = (1 - ((p + config.entropy_eps) ** q).sum()) / (q - 1)
        most = (1 - experts ** (1 - q)) / (q - 1)
    return value / most if config.normalised_entropy else value


def weights_of(p: Tensor, config: Any, method: str) -> Tensor:
    """One token's weights from its probabilities, by the letter of each method."""
    if method == "loramoe":
        return p
    values = p.detach().tolist()
    order = sorted(range(len(p)), key=lambda e: -values[e])
    if method in ("mixlora", "mola"):
        kept = order[: config.top_k]
        w = torch.zeros_like(p)
        w[kept] = p[kept] / p[kept].sum()
        return w
    kept, sum_so_far = [], 0.0
    for rank, e in enumerate(order):
        before, sum_so_far = sum_so_far, sum_so_far + values[e]
        nucleus = before < config.top_p if config.inclusive_nucleus else sum_so_far <= config.top_p
        if nucleus or rank < config.keep_top_k:
            kept.append(e)
    if config.entropy_threshold < 1 and float(_entropy(p.detach(), config)) > config.entropy_threshold:
        kept = order
    w = torch.zeros_like(p)
    w[kept] = p[kept]
    return w / w.sum() if config.renormalise else w


def _scale(config: Any) -> float:
    return float(config.alpha / (config.rank**0.5 if config.use_rslora else config.rank))


def _update(ref: Reference, linear: nn.Linear, x: Tensor, place: tuple[int, str, str], mid: str, config: Any) -> Tensor:
    """W x + b + (LoRA or DoRA of one pair) on x."""
    layer, _, name = place
    a, b = ref.part(*place, f"{mid}.lora_A.weight"), ref.part(*place, f"{mid}.lora_B.weight")
    y: Tensor = linear(x)
    if a is None or b is None:
        return y
    dropped = ref.drop(x, layer, name, config.dropout)
    low = _scale(config) * (dropped @ a.T @ b.T)
    m = ref.part(*place, f"{mid}.lora_magnitude_vector")
    if m is None:
        return y + low
    norm = (linear.weight + _scale(config) * (b @ a)).norm(dim=1).detach()
    return y + (m / norm - 1) * (dropped @ linear.weight.T) + m / norm * low


class _Linear(nn.Module):
    def __init__(self, ref: Reference, layer: int, block: str, name: str, linear: nn.Linear) -> None:
        super().__init__()
        self.ref, self.place, self.linear = [ref], (layer, block, name), linear

    def forward(self, x: Tensor) -> Tensor:
        (ref,) = self.ref
        rows = x[0]
        config = ref.config if ref.method != "mixlora" else ref.config.attention
        gate = ref.part(*self.place, ".moe_gate.weight")
        if ref.method == "mixlora" and self.place[1] == "mlp":
            out: Tensor = self.linear(rows)
        elif gate is None:
            out = _update(ref, self.linear, rows, self.place, "", config)
        else:
            p = torch.softmax(rows @ gate.T, 1)
            w = torch.stack([weights_of(row, config, ref.method) for row in p])
            ref.note(self.place[0], self.place[2], p, w)
            out = self.linear(rows)
            for e in range(p.shape[1]):
                each = _update(ref, self.linear, rows, self.place, f".experts.{e}", config) - self.linear(rows)
                out = out + w[:, e : e + 1] * each
        return out[None]


class _Mixture(nn.Module):
    """MixLoRA's FFN: every expert's whole FFN on every token, weighted."""

    def __init__(self, ref: Reference, layer: int, mlp: Any) -> None:
        super().__init__()
        self.ref, self.layer, self.mlp = [ref], layer, mlp

    def forward(self, x: Tensor) -> Tensor:
        (ref,) = self.ref
        rows, config = x[0], ref.config
        gate = ref.part(self.layer, "mlp", "moe_gate", ".weight")
        assert gate is not None
        p = torch.softmax(rows @ gate.T, 1)
        w = torch.stack([weights_of(row, config, "mixlora") for row in p])
        ref.note(self.layer, "", p, w)
        out = torch.zeros_like(rows)
        for e in range(config.num_experts):

            def project(name: str, h: Tensor, e: int = e) -> Tensor:
                linear = getattr(self.mlp, name).linear
                return _update(ref, linear, h, (self.layer, "mlp", name), f".experts.{e}", config)

            a = self.mlp.act_fn(project("gate_proj", rows)) * project("up_proj", rows)
            out = out + w[:, e : e + 1] * project("down_proj", a)
        return out[None]

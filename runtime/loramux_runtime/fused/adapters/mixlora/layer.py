"""This module has MixLoRA's tensors and its FFN.

The experts are low-rank updates of one frozen FFN that is computed once. W1 h and W3 h are shared
by all experts (the paper's optimisation), and W2 is linear: sum_e w_e W2 a_e = W2 (sum_e w_e a_e),
one frozen down-projection on T rows instead of k T. (DoRA on the down-projection scales outputs per
expert, so there it runs on every slot.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from loramux_profiles.widths import multiple_of_8
from loramux_runtime.fused.adapters.balance import balance_loss, balance_stats, top_k_weights
from loramux_runtime.fused.adapters.base import Adapter, Block, GroupRows, Method, scale_of
from loramux_runtime.fused.adapters.dora import decompose, leaf, row_norms
from loramux_runtime.fused.adapters.lora.layer import Lora, lora_specs
from loramux_runtime.fused.adapters.mixlora.config import FFN, MixLoraConfig
from loramux_runtime.fused.kernels.dropout import DropKey
from loramux_runtime.fused.kernels.expert_ffn import expert_ffn
from loramux_runtime.fused.kernels.experts import ExpertPair, Slots, combine, make_slots, slot_update, token_update
from loramux_runtime.fused.kernels.gated import gated
from loramux_runtime.fused.routing import Router, router_logits
from loramux_runtime.fused.sites import BaseSites, Plans
from loramux_runtime.fused.slab import FilePart, TensorSpec
from loramux_runtime.fused.stats import RouterStats

_LORA = Lora()


def _expert_specs(prefix: str, key: str, n_in: int, n_out: int, config: MixLoraConfig) -> list[TensorSpec]:
    rank, experts = config.rank, config.num_experts
    width = multiple_of_8(rank)
    rows = slice(0, rank)

    def parts(name: str, *index: slice) -> tuple[FilePart, ...]:
        return tuple(FilePart(name=f"{prefix}.experts.{e}.{name}", index=(e, *index)) for e in range(experts))

    specs = [
        TensorSpec(key=f"{key}.A", shape=(experts, width, n_in), parts=parts("lora_A.weight", rows), init="kaiming"),
        TensorSpec(
            key=f"{key}.B",
            shape=(experts, n_out, width),
            parts=parts("lora_B.weight", slice(None), rows),
            init="zeros",
        ),
    ]
    if config.use_dora:
        specs.append(
            TensorSpec(
                key=f"{key}.m", shape=(experts, n_out), parts=parts("lora_magnitude_vector", slice(None)), init="ones"
            )
        )
    return specs


class MixLora(Method):
    """MixLoRA has experts in the FFN block, and an ordinary LoRA on attention."""

    name: ClassVar[str] = "mixlora"
    config_type: ClassVar[type[Any]] = MixLoraConfig
    has_block: ClassVar[bool] = True

    def specs(self, config: MixLoraConfig, base: BaseSites) -> tuple[TensorSpec, ...]:
        """Return the attention pairs, one gate per layer, and the experts' pairs."""
        found: list[TensorSpec] = []
        for layer in range(base.layers):
            prefix = f"{self.name}.layers.{layer}"
            if config.attention is not None:
                for site in base.targets(config.attention.target_modules, "self_attn"):
                    path = f"{prefix}.{site.block}.{site.name}"
                    found += lora_specs(
                        path, f"{layer}.{site.name}", site, config.attention.rank, config.attention.use_dora
                    )
            found.append(
                TensorSpec(
                    key=f"{layer}.gate",
                    shape=(config.num_experts, base.hidden),
                    parts=(FilePart(name=f"{prefix}.mlp.moe_gate.weight", index=(slice(None),)),),
                    init="normal",
                    std=config.router_init_std,
                )
            )
            for name in FFN:
                if name in config.expert_modules:
                    n_in, n_out = (base.ffn, base.hidden) if name == "down_proj" else (base.hidden, base.ffn)
                    found += _expert_specs(f"{prefix}.mlp.{name}", f"{layer}.{name}", n_in, n_out, config)
        return tuple(found)

    def plans(self, config: MixLoraConfig, base: BaseSites) -> Plans:
        """Return the plans of the attention projections; the FFN is `block`'s."""
        if config.attention is None:
            return {}
        names = {site.name for site in base.targets(config.attention.target_modules, "self_attn")}
        every = _LORA.plans(config.attention, base)
        return {place: plan for place, plan in every.items() if place[1] in names}

    def structure(self, config: MixLoraConfig, base: BaseSites) -> tuple[Any, ...]:
        """Return everything but scales, dropout and loss weights."""
        attention = None if config.attention is None else _LORA.structure(config.attention, base)
        own = (multiple_of_8(config.rank), config.num_experts, config.top_k, config.expert_modules, config.use_dora)
        return (self.name, *own, attention)

    def finish_initialisation(self, adapter: Adapter, weight_of: Any) -> None:
        """Set DoRA's magnitudes to the norms of the frozen rows."""
        _LORA.finish_initialisation(adapter, weight_of)
        config: MixLoraConfig = adapter.config
        if config.use_dora:
            for spec in adapter.slab.layout.specs:
                layer, name = spec.key.split(".")[:2]
                if spec.key.endswith(".m") and name in FFN:
                    adapter.slab.param(spec.key).copy_(
                        weight_of(int(layer), name).to(adapter.slab.params.dtype).norm(dim=1).expand(spec.shape)
                    )
            adapter.slab.version += 1

    def auxiliary(self, group: GroupRows, stats: RouterStats) -> Tensor | None:
        """Return the load-balance loss over the gates of all layers."""
        return balance_loss(group, stats, [adapter.config.router_aux_loss_coef for adapter in group.adapters])

    def block(self, block: Block) -> tuple[Tensor, Tensor | None]:
        """Return (rows for the frozen down-projection, what is added after it).

        See `Method.block`.
        """
        group, layer = block.group, block.layer
        config: MixLoraConfig = group.config
        hidden, (logits,) = router_logits(block.hidden, block.anchor, [Router(group, f"{layer}.gate", 0)])
        p = torch.softmax(logits, 1)
        chosen, weights = top_k_weights(p, config.top_k)
        block.stats.add(group.index, config.num_experts, balance_stats(p, chosen, group))
        slots = make_slots(chosen, group.job_of_row, group.offs, config.num_experts)
        w = weights.flatten().index_select(0, slots.order)
        pairs = [self._pair(block, name, slots) if name in config.expert_modules else None for name in FFN]
        if not config.use_dora:
            return expert_ffn(hidden, block.gate, block.up, w, slots, (pairs[0], pairs[1], pairs[2]), block.act)
        gate = self._dora(block, "gate_proj", block.gate, slots, pairs[0])
        up = self._dora(block, "up_proj", block.up, slots, pairs[1])
        a = gated(gate, up, block.act, ((0, len(gate)),))
        return combine(a, w, slots), self._dora_down(block, a, w, slots, pairs[2])

    def _pair(self, block: Block, name: str, slots: Slots) -> ExpertPair:
        group, layer = block.group, block.layer
        configs = [adapter.config for adapter in group.adapters]
        rates = [c.dropout if group.training else 0.0 for c in configs]
        scales = [scale_of(c.alpha, c.rank, c.use_rslora) / (1.0 - p) for c, p in zip(configs, rates, strict=True)]
        column = group.column(scales, torch.promote_types(group.compute_dtype, torch.float32))
        key_a, key_b = f"{layer}.{name}.A", f"{layer}.{name}.B"

        def add_grads(d_a: Tensor, d_b: Tensor) -> None:
            group.add_grad(key_a, d_a)
            group.add_grad(key_b, d_b)

        return ExpertPair(
            a=group.stack(key_a),
            b=group.stack(key_b),
            scale=column if len(column) == 1 else column.index_select(0, slots.tokens),
            drop=group.drop_key(rates, layer, name),
            add_grads=add_grads,
        )

    def _dora(self, block: Block, name: str, base: Tensor, slots: Slots, pair: ExpertPair | None) -> Tensor:
        """Return the output of a projection by slot."""
        shared = base.index_select(0, slots.tokens)
        if pair is None:
            return shared
        dropped = base
        if pair.drop is not None:
            masked = _drop(block.hidden, pair.drop)
            dropped = block.linear(name, masked, block.group.slices) * self._kept(block.group)
        ratio = self._ratio(block, name).index_select(0, slots.groups)
        low_rank = token_update(block.hidden, slots, pair)
        return shared + decompose(shared, dropped.index_select(0, slots.tokens), low_rank, ratio)

    def _ratio(self, block: Block, name: str) -> Tensor:
        """Return m / |W + s B A| of every expert, [jobs * experts, n_out]."""
        weight = block.weight(name)
        ratios = []
        for adapter in block.group.adapters:
            config, slab, key = adapter.config, adapter.slab, f"{block.layer}.{name}"
            scale = scale_of(config.alpha, config.rank, config.use_rslora)
            norms = row_norms(weight, slab.param(f"{key}.A"), slab.param(f"{key}.B"), scale)
            ratios.append(leaf(slab, f"{key}.m") / norms)
        return torch.cat(ratios)

    def _dora_down(self, block: Block, a: Tensor, w: Tensor, slots: Slots, pair: ExpertPair | None) -> Tensor | None:
        """Run the frozen W2 on every slot as well, and return what is added after it.

        A scale per expert and output does not factor out of the sum.
        """
        if pair is None:
            return None
        rows = ((0, len(a)),)
        base = dropped = block.linear("down_proj", a, rows)
        if pair.drop is not None:
            pair = replace(pair, drop=pair.drop.at(slots.tokens))
            assert pair.drop is not None
            column = self._kept(block.group)
            column = column if len(column) == 1 else column.index_select(0, slots.tokens)
            dropped = block.linear("down_proj", _drop(a, pair.drop), rows) * column
        ratio = self._ratio(block, "down_proj").index_select(0, slots.groups)
        return combine(decompose(base, dropped, slot_update(a, slots, pair), ratio), w, slots)

    @staticmethod
    def _kept(group: GroupRows) -> Tensor:
        """Return 1 / (1 - p) by row."""
        return group.column([1.0 / (1.0 - adapter.config.dropout) for adapter in group.adapters], group.compute_dtype)


def _drop(x: Tensor, key: DropKey) -> Tensor:
    """Apply dropout to x without its factor 1 / (1 - p); the result is differentiable."""
    return x * key.mask(x.shape[1])

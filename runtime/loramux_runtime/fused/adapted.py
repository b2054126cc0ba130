"""These modules stand in for a decoder layer's linears, its FFN and the layer itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loramux_runtime.fused.adapters.base import Block
from loramux_runtime.fused.adapters.dora import decompose, leaf, row_norms
from loramux_runtime.fused.context import StepContext, current_step
from loramux_runtime.fused.groups import JobGroup
from loramux_runtime.fused.kernels.add_rows import add_rows
from loramux_runtime.fused.kernels.gated import gated
from loramux_runtime.fused.kernels.lowrank import Frozen, LowRank, Slices, Source, adapted_linear
from loramux_runtime.fused.routing import Router, router_logits
from loramux_runtime.fused.sites import LinearPlan
from loramux_runtime.fused.stats import RouterStats


def low_rank(group: JobGroup, layer: int, name: str) -> tuple[LinearPlan, LowRank] | None:
    """Return the plan and the update of a group on one linear, or None where it has none."""
    plan = group.adapters[0].plans.get((layer, name))
    if plan is None:
        return None
    plans = [adapter.plans[layer, name] for adapter in group.adapters]
    rates = [p.dropout if group.training else 0.0 for p in plans]
    scales = [p.scale / (1.0 - rate) for p, rate in zip(plans, rates, strict=True)]

    def add_grads(d_a: Tensor, d_b: Tensor) -> None:
        group.add_grad(plan.a, d_a)
        group.add_grad(plan.b, d_b)

    return plan, LowRank(
        start=group.start,
        end=group.end,
        offs=group.offs,
        a=group.stack(plan.a),
        b=group.stack(plan.b),
        scale=group.column(scales, torch.promote_types(group.compute_dtype, torch.float32)),
        drop=group.drop_key(rates, layer, name),
        rank=plan.rank,
        add_grads=add_grads,
    )


class AdaptedLinear(nn.Module):
    """An adapted linear is a frozen linear of one layer, with every job's update."""

    def __init__(self, linear: nn.Linear, layer: int, name: str) -> None:
        super().__init__()
        self.linear = linear
        self.layer = layer
        self.name = name

    def forward(self, x: Tensor, source: Source | None = None) -> Tensor:
        """Apply the linear and the updates: [1, T, n_in] -> [1, T, n_out].

        `source` is what x can be made from again in the backward pass.
        """
        # squeeze is a view both ways; for x[0] a gradient of zeros is made and copied into
        return self.rows(x.squeeze(0), source).unsqueeze(0)

    def rows(self, rows: Tensor, source: Source | None = None) -> Tensor:
        """Apply the linear and the updates without the batch dimension: [T, n_in] -> [T, n_out].

        The result is no view, so that adding to it in place copies nothing in the backward pass.
        """
        context = current_step()
        updates: list[LowRank] = []
        decomposed: list[JobGroup] = []
        routed: list[tuple[int, JobGroup, LinearPlan]] = []
        for group in context.layout.groups:
            found = low_rank(group, self.layer, self.name)
            if found is None:
                continue
            plan, update = found
            if plan.magnitude is not None:
                decomposed.append(group)
                continue
            if plan.router is not None:
                routed.append((len(updates), group, plan))
            updates.append(update)
        weights: list[Tensor | None] = [None] * len(updates)
        routers = [Router(group, plan.router or "", group.start) for _, group, plan in routed]
        same, logits = router_logits(rows, context.anchor, routers)
        for (i, group, plan), own in zip(routed, logits, strict=True):
            weights[i] = group.method.route(group, plan.experts, own, context.stats)
        frozen = Frozen(weight=self.linear.weight, bias=self.linear.bias, slices=context.layout.slices)
        y = adapted_linear(same, context.anchor, frozen, updates, weights, None if routers else source)
        for group in decomposed:
            y = self._dora(context, group, rows, y)
        return y

    def _dora(self, context: StepContext, group: JobGroup, rows: Tensor, y: Tensor) -> Tensor:
        """Add the DoRA updates job by job, because norms and magnitudes are each job's own."""
        for adapter, segment in zip(group.adapters, group.segments, strict=True):
            plan = adapter.plans[self.layer, self.name]
            found = low_rank(group.alone(adapter), self.layer, self.name)
            assert found is not None and plan.magnitude is not None
            update = found[1]
            own = rows[segment.start : segment.end]
            base = y[segment.start : segment.end].clone()
            low = adapted_linear(own, context.anchor, None, [update], [None])
            if update.drop is None:
                dropped = base if self.linear.bias is None else base - self.linear.bias
            else:
                frozen = Frozen(weight=self.linear.weight, bias=None, slices=((0, len(own)),))
                masked = own * update.drop.mask(own.shape[1])
                dropped = adapted_linear(masked, context.anchor, frozen, [], []) / (1.0 - plan.dropout)
            slab = adapter.slab
            norms = row_norms(self.linear.weight, slab.param(plan.a), slab.param(plan.b), plan.scale)
            delta = decompose(base, dropped, low, leaf(slab, plan.magnitude) / norms)
            y = add_rows(y, [segment.start], [delta])
        return y


class AdaptedMlp(nn.Module):
    """An adapted MLP is a gated FFN whose projections carry low-rank updates.

    A method's experts may replace its middle.
    """

    def __init__(self, mlp: Any, layer: int, act: str) -> None:
        super().__init__()
        self.layer, self.act = layer, act
        self.fused = hasattr(mlp, "gate_up_proj")
        names = ("gate_up_proj", "down_proj") if self.fused else ("gate_proj", "up_proj", "down_proj")
        self.linears = nn.ModuleDict({name: AdaptedLinear(getattr(mlp, name), layer, name) for name in names})

    def forward(self, x: Tensor) -> Tensor:
        """Apply the FFN and the updates: [1, T, d] -> [1, T, d]."""
        return self._rows(x.squeeze(0)).unsqueeze(0)

    def _rows(self, x: Tensor) -> Tensor:
        context = current_step()
        layout = context.layout
        if self.fused:
            gate, up = self._project("gate_up_proj", x).chunk(2, dim=-1)
        else:
            gate, up = self._project("gate_proj", x), self._project("up_proj", x)
        groups = [group for group in layout.groups if group.method.has_block]
        if not groups:
            # The input of down_proj is made again in the backward pass from gate and up, which
            # `gated` keeps anyway. That saves 13% of the memory per token and layer (LLaMA-7B,
            # LoRA) and costs 0.6% of a CPU step
            again = Source(tensors=(gate, up), make=partial(gated, act=self.act, slices=layout.slices))
            return self._project("down_proj", gated(gate, up, self.act, layout.slices), again)
        # Split, not sliced: the gradients of the pieces are put together once, while the gradient
        # of each slice would be filled up with zeros to full size
        sizes = [groups[0].start, *(group.n_rows for group in groups), layout.width - groups[-1].end]
        hidden, gates, ups = (torch.split(rows, sizes) for rows in (x, gate, up))
        parts = [gated(gates[0], ups[0], self.act, _until(layout.slices, sizes[0]))] if sizes[0] else []
        starts: list[int] = []
        deltas: list[Tensor] = []
        for i, group in enumerate(groups, 1):
            block = Block(
                group=group,
                layer=self.layer,
                hidden=hidden[i],
                gate=gates[i],
                up=ups[i],
                act=self.act,
                anchor=context.anchor,
                stats=context.stats,
                weight=self.weight,
                linear=self._linear,
            )
            z, delta = group.method.block(block)
            parts.append(z)
            if delta is not None:
                starts.append(group.start)
                deltas.append(delta)
        parts.append(gate.new_zeros(sizes[-1], gate.shape[1]))
        return add_rows(self._project("down_proj", torch.cat(parts)), starts, deltas)

    def weight(self, name: str) -> Tensor:
        """Return the frozen weight of gate_proj, up_proj or down_proj."""
        if self.fused and name != "down_proj":
            return self._weight("gate_up_proj").chunk(2)[name == "up_proj"]
        return self._weight(name)

    def _project(self, name: str, x: Tensor, source: Source | None = None) -> Tensor:
        module = self.linears[name]
        assert isinstance(module, AdaptedLinear)
        return module.rows(x, source)

    def _weight(self, name: str) -> Tensor:
        module = self.linears[name]
        assert isinstance(module, AdaptedLinear)
        return module.linear.weight

    def _linear(self, name: str, x: Tensor, slices: Slices) -> Tensor:
        frozen = Frozen(weight=self.weight(name), bias=None, slices=slices)
        return adapted_linear(x, current_step().anchor, frozen, [], [])


def _until(slices: Slices, end: int) -> Slices:
    """Return the parts of the slices before row `end`."""
    return tuple((a, min(b, end)) for a, b in slices if a < end)


class StepLayer(nn.Module):
    """A step layer is a decoder layer that hands its routers' statistics out as tensors.

    So it can be recomputed.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.recompute = False

    def forward(self, hidden: Tensor, **options: Any) -> Tensor:
        """Run the decoder layer: [1, T, d] -> [1, T, d]."""
        context = current_step()
        keys: list[Any] = []

        def run(h: Tensor) -> tuple[Tensor, ...]:
            before, context.stats = context.stats, RouterStats()
            try:
                out = self.layer(h, **options)
                keys[:], values = context.stats.unpack()
            finally:  # it runs again in the backward pass, which torch ends early by an exception
                context.stats = before
            return (out[0] if isinstance(out, tuple) else out, *values)

        if self.recompute and torch.is_grad_enabled():
            out, *values = checkpoint(run, hidden, use_reentrant=False, preserve_rng_state=False)
        else:
            out, *values = run(hidden)
        context.stats.take(keys, values)
        result: Tensor = out
        return result

"""This module says what of each job's adapter a fused step allocates by.

That is the stored widths of its low-rank updates, layer by layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_point import AdapterPoint
from loramux_profiles.widths import experts_by_layer, multiple_of_8, rank_bucket

FFN: Final = ("gate", "up", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Describes a low-rank update of one linear."""

    width: int
    """Columns of A x as stored: the rank, or experts times the rank, padded."""
    experts: int = 0
    """Experts of the linear's own router; 0 for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Describes MixLoRA's block between the frozen projections of the FFN."""

    experts: int
    top_k: int
    width: int
    """Width of one expert, padded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """Describes one job in one layer."""

    updates: dict[str, Update]
    """Updates by short name of the linear (q, k, v, o, gate, up, down)."""
    block: Experts | None = None


@lru_cache(maxsize=4096)
def layer_plans(shape: ModelShape, adapter: AdapterPoint) -> tuple[LayerPlan, ...]:
    """Return the plan of every layer; layers that are alike share one object.

    Raises ValueError where the experts do not fit.
    """
    if adapter.method in ("lora", "mixlora"):
        width = rank_bucket(adapter.rank)
        names = [t.name for t in shape.targets(adapter.targets)]
        block = None
        if adapter.method == "mixlora":
            names = [name for name in names if name not in FFN]
            assert isinstance(adapter.experts, int)
            block = Experts(experts=adapter.experts, top_k=adapter.top_k, width=multiple_of_8(adapter.rank))
        one = LayerPlan(updates={name: Update(width=width) for name in names}, block=block)
        return (one,) * shape.layers
    counts = experts_by_layer(adapter.experts, shape.layers)
    kinds = {
        experts: LayerPlan(
            updates={
                t.name: Update(width=multiple_of_8(experts * adapter.rank), experts=experts)
                for t in shape.targets(adapter.targets)
            }
        )
        for experts in set(counts)
    }
    return tuple(kinds[experts] for experts in counts)


def stored_params(shape: ModelShape, adapter: AdapterPoint) -> int:
    """Return the number of elements of the adapter's flat buffer, padding of ranks included.

    The padding of alignment, below 0.1%, is left out.
    """
    linears = {t.name: t for t in shape.linears}
    total = 0
    for plan in layer_plans(shape, adapter):
        for name, update in plan.updates.items():
            t = linears[name]
            total += update.width * (t.n_in + t.n_out) + update.experts * t.n_in + (t.n_out if adapter.dora else 0)
        if plan.block is not None:
            block = plan.block
            pair = block.width * (shape.hidden + shape.ffn)
            total += block.experts * (3 * pair + shape.hidden)
            if adapter.dora:
                total += block.experts * (2 * shape.ffn + shape.hidden)
    return total

"""This module has LoRA's tensors and plans; the arithmetic is `kernels.lowrank`."""

from __future__ import annotations

from typing import Any, ClassVar

from loramux_profiles.widths import rank_bucket
from loramux_runtime.fused.adapters.base import Adapter, Method, scale_of
from loramux_runtime.fused.adapters.lora.config import LoraConfig
from loramux_runtime.fused.sites import BaseSites, LinearPlan, Plans, Site
from loramux_runtime.fused.slab import FilePart, TensorSpec


def lora_specs(prefix: str, key: str, site: Site, rank: int, dora: bool) -> list[TensorSpec]:
    """Return A, B and perhaps the magnitude of one linear, padded to the rank bucket.

    `prefix` names them in files.
    """
    width = rank_bucket(rank)
    rows = slice(0, rank)
    specs = [
        TensorSpec(
            key=f"{key}.A",
            shape=(width, site.n_in),
            parts=(FilePart(name=f"{prefix}.lora_A.weight", index=(rows,)),),
            init="kaiming",
        ),
        TensorSpec(
            key=f"{key}.B",
            shape=(site.n_out, width),
            parts=(FilePart(name=f"{prefix}.lora_B.weight", index=(slice(None), rows)),),
            init="zeros",
        ),
    ]
    if dora:
        part = FilePart(name=f"{prefix}.lora_magnitude_vector", index=(slice(None),))
        specs.append(TensorSpec(key=f"{key}.m", shape=(site.n_out,), parts=(part,), init="ones"))
    return specs


class Lora(Method):
    """LoRA has one low-rank pair per targeted linear."""

    name: ClassVar[str] = "lora"
    config_type: ClassVar[type[Any]] = LoraConfig

    def specs(self, config: LoraConfig, base: BaseSites) -> tuple[TensorSpec, ...]:
        """Return A and B of every targeted linear, named as PEFT names them."""
        found: list[TensorSpec] = []
        for layer in range(base.layers):
            for site in base.some_targets(config.target_modules):
                path = f"base_model.model.{base.prefix}.{layer}.{site.block}.{site.name}"
                found += lora_specs(path, f"{layer}.{site.name}", site, config.rank, config.use_dora)
        return tuple(found)

    def plans(self, config: LoraConfig, base: BaseSites) -> Plans:
        """Return one plan per targeted linear."""
        scale = scale_of(config.alpha, config.rank, config.use_rslora)
        return {
            (layer, site.name): LinearPlan(
                a=f"{layer}.{site.name}.A",
                b=f"{layer}.{site.name}.B",
                rank=rank_bucket(config.rank),
                scale=scale,
                dropout=config.dropout,
                magnitude=f"{layer}.{site.name}.m" if config.use_dora else None,
            )
            for layer in range(base.layers)
            for site in base.some_targets(config.target_modules)
        }

    def structure(self, config: LoraConfig, base: BaseSites) -> tuple[Any, ...]:
        """Return what jobs must have equal to fuse; ranks of one bucket count as equal."""
        names = tuple(site.name for site in base.some_targets(config.target_modules))
        return (self.name, rank_bucket(config.rank), names, config.use_dora)

    def finish_initialisation(self, adapter: Adapter, weight_of: Any) -> None:
        """Set DoRA's magnitudes to the norms of the frozen rows.

        So the first step equals the base.
        """
        for (layer, name), plan in adapter.plans.items():
            if plan.magnitude is not None:
                norm = weight_of(layer, name).to(adapter.slab.params.dtype).norm(dim=1)
                adapter.slab.param(plan.magnitude).copy_(norm)
        adapter.slab.version += 1

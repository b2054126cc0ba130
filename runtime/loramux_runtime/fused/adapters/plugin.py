"""The plug-in mixtures share one gate per linear, and experts stacked into one LoRA.

The stacked LoRA has rank experts * r: y += s B_cat (repeat_r(w) * (A_cat drop(x))). It needs no
permutation and no synchronisation, and its cost and memory are independent of the routing. It is
dense because skipping masked experts saved 1 to 2% of a CPU step and took 1.27x the memory
(prototype).
"""

from __future__ import annotations

from typing import Any

from loramux_profiles.widths import multiple_of_8
from loramux_runtime.fused.adapters.base import Method, scale_of
from loramux_runtime.fused.sites import BaseSites, LinearPlan, Plans, Site
from loramux_runtime.fused.slab import FilePart, TensorSpec


def plugin_specs(prefix: str, key: str, site: Site, rank: int, experts: int) -> list[TensorSpec]:
    """Return the gate, the stacked A and the stacked B of one linear.

    Expert e owns rows and columns e * rank to (e + 1) * rank.
    """
    width = multiple_of_8(experts * rank)
    spans = [slice(e * rank, (e + 1) * rank) for e in range(experts)]
    gate = FilePart(name=f"{prefix}.moe_gate.weight", index=(slice(None),))
    return [
        TensorSpec(key=f"{key}.gate", shape=(experts, site.n_in), parts=(gate,), init="kaiming"),
        TensorSpec(
            key=f"{key}.A",
            shape=(width, site.n_in),
            parts=tuple(
                FilePart(name=f"{prefix}.experts.{e}.lora_A.weight", index=(span,)) for e, span in enumerate(spans)
            ),
            init="kaiming",
        ),
        TensorSpec(
            key=f"{key}.B",
            shape=(site.n_out, width),
            parts=tuple(
                FilePart(name=f"{prefix}.experts.{e}.lora_B.weight", index=(slice(None), span))
                for e, span in enumerate(spans)
            ),
            init="zeros",
        ),
    ]


class Plugin(Method):
    """This class is the base of the plug-in methods, which differ in `route` and `auxiliary`."""

    def experts_of(self, config: Any, layer: int, base: BaseSites) -> int:
        """Return the number of experts of a layer's linears."""
        return int(config.num_experts)

    def specs(self, config: Any, base: BaseSites) -> tuple[TensorSpec, ...]:
        """Return the tensors of every targeted linear."""
        return tuple(
            spec
            for layer, site in self._places(config, base)
            for spec in plugin_specs(
                f"{self.name}.layers.{layer}.{site.block}.{site.name}",
                f"{layer}.{site.name}",
                site,
                config.rank,
                self.experts_of(config, layer, base),
            )
        )

    def plans(self, config: Any, base: BaseSites) -> Plans:
        """Return one plan per targeted linear."""
        scale = scale_of(config.alpha, config.rank, config.use_rslora)
        return {
            (layer, site.name): LinearPlan(
                a=f"{layer}.{site.name}.A",
                b=f"{layer}.{site.name}.B",
                router=f"{layer}.{site.name}.gate",
                rank=config.rank,
                experts=self.experts_of(config, layer, base),
                scale=scale,
                dropout=config.dropout,
            )
            for layer, site in self._places(config, base)
        }

    def structure(self, config: Any, base: BaseSites) -> tuple[Any, ...]:
        """Return rank, experts, targets and the method's own routing rule."""
        experts = tuple(self.experts_of(config, layer, base) for layer in range(base.layers))
        names = tuple(site.name for site in base.targets(config.target_modules))
        return (self.name, config.rank, experts, names, *self.rule(config))

    def rule(self, config: Any) -> tuple[Any, ...]:
        """Return the parameters of the routing that a group of jobs must share."""
        return ()

    def _places(self, config: Any, base: BaseSites) -> list[tuple[int, Site]]:
        targets = base.some_targets(config.target_modules)
        return [(layer, site) for layer in range(base.layers) for site in targets]

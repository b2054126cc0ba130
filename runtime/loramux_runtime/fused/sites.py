"""This module says which linears of a base model adapters may change, and how.

An adapter says with a plan what it does to one linear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

PRESETS: Final[dict[str, tuple[str, ...] | None]] = {
    "all-linear": None,
    "attention": ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "gate_up_proj", "down_proj"),
    "qv": ("q_proj", "v_proj", "qkv_proj"),
}
"""Names that `target_modules` may be instead of a list; None: every linear of the layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A site is a frozen linear of every decoder layer that adapters may change."""

    name: str
    """For example `q_proj`; on bases that fuse them `qkv_proj`, `gate_up_proj`."""
    block: Literal["self_attn", "mlp"]
    n_in: int
    n_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSites:
    """These fields are what adapters need to know of a base model."""

    layers: int
    hidden: int
    ffn: int
    sites: tuple[Site, ...]
    prefix: str = "model.layers"
    """Path of the decoder layers inside the Hugging Face model (names of LoRA files)."""

    def site(self, name: str) -> Site:
        """Return a linear by name.

        Raises ValueError, which names those there are.
        """
        for site in self.sites:
            if site.name == name:
                return site
        raise ValueError(
            f"the base model has no linear called {name!r} (it has {', '.join(s.name for s in self.sites)})"
        )

    def targets(
        self, wanted: str | Sequence[str], within: Literal["self_attn", "mlp"] | None = None
    ) -> tuple[Site, ...]:
        """Return the linears of a preset or a list, in the base's order.

        Raises ValueError for an unknown name. The result may be empty, which the methods check.
        """
        if isinstance(wanted, str):
            if wanted not in PRESETS:
                raise ValueError(
                    f"target_modules must be a list of linears or one of {', '.join(PRESETS)}, not {wanted!r}"
                )
            names = PRESETS[wanted]
            found = [s for s in self.sites if names is None or s.name in names]
        else:
            names = tuple(self.site(name).name for name in wanted)
            found = [s for s in self.sites if s.name in names]
        return tuple(s for s in found if within is None or s.block == within)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearPlan:
    """A plan says how an adapter changes one linear of one layer.

    It has keys of the adapter's slab, and factors.
    """

    a: str
    b: str
    rank: int
    """Rank of one expert."""
    scale: float
    """alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732)."""
    dropout: float
    router: str | None = None
    """Key of the gate where the linear has a router of its own."""
    experts: int = 1
    magnitude: str | None = None
    """Key of DoRA's magnitude vector."""


Plans = Mapping[tuple[int, str], LinearPlan]

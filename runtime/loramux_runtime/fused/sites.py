"""This module says which linears of a base model adapters may change, and how.

An adapter says with a plan what it does to one linear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from loramux_traces.problems import shown

PRESETS: Final[dict[str, tuple[str, ...] | None]] = {
    "all-linear": None,
    "attention": ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "gate_up_proj", "down_proj"),
    "qv": ("q_proj", "v_proj", "qkv_proj"),
}
"""Names that `target_modules` may be instead of a list; None: every linear of the layer."""


class NoSuchLinearError(ValueError):
    """A base has not the linears that an adapter names: `value` is what was named."""

    def __init__(self, value: object, allowed: str) -> None:
        super().__init__(f"target_modules: {shown(value)!r}; {allowed}" if value else f"target_modules: {allowed}")
        self.value, self.allowed = value, allowed


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

        Raises NoSuchLinearError, which names those there are.
        """
        for site in self.sites:
            if site.name == name:
                return site
        raise NoSuchLinearError(name, f"is no linear of the base model (it has {self._names()})")

    def _names(self) -> str:
        return ", ".join(site.name for site in self.sites)

    def targets(
        self, wanted: str | Sequence[str], within: Literal["self_attn", "mlp"] | None = None
    ) -> tuple[Site, ...]:
        """Return the linears of a preset or a list, in the base's order.

        Raises NoSuchLinearError for an unknown name. The result may be empty (`some_targets`).
        """
        if isinstance(wanted, str):
            if wanted not in PRESETS:
                raise NoSuchLinearError(wanted, f"must be a list of linears or one of {', '.join(PRESETS)}")
            names = PRESETS[wanted]
            found = [s for s in self.sites if names is None or s.name in names]
        else:
            names = tuple(self.site(name).name for name in wanted)
            found = [s for s in self.sites if s.name in names]
        return tuple(s for s in found if within is None or s.block == within)

    def some_targets(self, wanted: str | Sequence[str]) -> tuple[Site, ...]:
        """Return the linears of a preset or a list, of which there is at least one."""
        found = self.targets(wanted)
        if not found:
            named = wanted if isinstance(wanted, str) else ", ".join(wanted)
            raise NoSuchLinearError(named, f"must name at least one linear of the base model (it has {self._names()})")
        return found


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

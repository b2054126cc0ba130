"""What an adapter method is to the fused step: tensors, low-rank plans, routing, and for some a block of the FFN."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from torch import Tensor

from loramux_runtime.fused.slab import TensorSpec

if TYPE_CHECKING:
    from loramux_runtime.fused.adapter import Adapter
    from loramux_runtime.fused.groups import JobGroup
    from loramux_runtime.fused.stats import RouterStats

PRESETS: Final[dict[str, tuple[str, ...] | None]] = {
    "all-linear": None,
    "attention": ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "gate_up_proj", "down_proj"),
    "qv": ("q_proj", "v_proj", "qkv_proj"),
}
"""Names that `target_modules` may be instead of a list; None: every linear of the layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A frozen linear of every decoder layer that adapters may change."""

    name: str
    """For example `q_proj`; on bases that fuse them `qkv_proj`, `gate_up_proj`."""
    block: Literal["self_attn", "mlp"]
    n_in: int
    n_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSites:
    """What adapters need to know of a base model."""

    layers: int
    hidden: int
    ffn: int
    sites: tuple[Site, ...]
    prefix: str = "model.layers"
    """Path of the decoder layers inside the Hugging Face model (names of LoRA files)."""

    def site(self, name: str) -> Site:
        """A linear by name; ValueError names those there are."""
        for site in self.sites:
            if site.name == name:
                return site
        raise ValueError(
            f"the base model has no linear called {name!r} (it has {', '.join(s.name for s in self.sites)})"
        )

    def targets(
        self, wanted: str | Sequence[str], within: Literal["self_attn", "mlp"] | None = None
    ) -> tuple[Site, ...]:
        """The linears of a preset or a list, in the base's order. ValueError for an unknown name or an empty choice."""
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
    """How one linear of one layer is changed by an adapter: keys of its slab and factors."""

    a: str
    b: str
    rank: int
    """Of one expert."""
    scale: float
    """alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732)."""
    dropout: float
    router: str | None = None
    """Key of the gate where the linear has a router of its own."""
    experts: int = 1
    magnitude: str | None = None
    """Key of DoRA's magnitude vector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What a method that replaces the FFN between its projections is given: one group's rows of one layer."""

    group: JobGroup
    layer: int
    hidden: Tensor
    """[rows, d]: input of the FFN."""
    gate: Tensor
    """[rows, f]: frozen gate projection of it (bias included), likewise `up`."""
    up: Tensor
    act: str
    anchor: Tensor
    stats: RouterStats
    weight: Callable[[str], Tensor]
    """Frozen weight by name: gate_proj, up_proj, down_proj (slices of it where the base fuses two)."""
    linear: Callable[[str, Tensor, tuple[tuple[int, int], ...]], Tensor]
    """The frozen linear, without its bias, on rows in these slices."""


Plans = Mapping[tuple[int, str], LinearPlan]


class Method:
    """A kind of adapter. One object per method, without state; a new one is a folder and a line in `METHODS`."""

    name: ClassVar[str]
    config_type: ClassVar[type[Any]]
    has_block: ClassVar[bool] = False
    """Whether it replaces the FFN between its projections (`block`); such jobs stand last in a packed step."""

    def specs(self, config: Any, base: BaseSites) -> tuple[TensorSpec, ...]:
        """The tensors of one adapter. ValueError where the configuration does not fit the base."""
        raise NotImplementedError

    def plans(self, config: Any, base: BaseSites) -> Plans:
        """Low-rank updates by (layer, linear)."""
        raise NotImplementedError

    def structure(self, config: Any, base: BaseSites) -> tuple[Any, ...]:
        """What must be equal for two jobs to share grouped GEMMs; scales, dropout and loss weights need not be."""
        raise NotImplementedError

    def route(self, group: JobGroup, experts: int, logits: Tensor, stats: RouterStats) -> Tensor:
        """Weights [rows, experts] of a linear's experts from its gate's logits; adds what the loss needs to `stats`."""
        raise NotImplementedError

    def block(self, block: Block) -> tuple[Tensor, Tensor | None]:
        """([rows, f] for the frozen down-projection, [rows, d] to add after it or None); where `has_block`."""
        raise NotImplementedError

    def auxiliary(self, group: JobGroup, stats: RouterStats) -> Tensor | None:
        """Auxiliary loss of each job [jobs], or None."""
        return None

    def active_experts(self, group: JobGroup, stats: RouterStats) -> Tensor | None:
        """Mean experts kept per token of each job [jobs], where the routing decides it."""
        return None

    def finish_initialisation(self, adapter: Adapter, weight_of: Any) -> None:
        """Initial values that depend on the base: `weight_of(layer, name)` gives a frozen weight."""


def scale_of(alpha: float, rank: int, rslora: bool) -> float:
    """LoRA's factor on B A."""
    return float(alpha / rank**0.5 if rslora else alpha / rank)


def check_lora(rank: int, alpha: float, dropout: float) -> None:
    """ValueError on values without meaning."""
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha must be above 0 and finite, not {alpha}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}")

"""What an adapter method is to the fused step (tensors, low-rank plans, routing, for some a block of the FFN), and one
job's adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from loramux_runtime.fused.kernels.dropout import DropKey
from loramux_runtime.fused.sites import BaseSites, Plans
from loramux_runtime.fused.slab import Slab, SlabLayout, TensorSpec
from loramux_runtime.fused.stats import RouterStats


class GroupRows(Protocol):
    """What a method sees of the rows it works on: those of some jobs of one step, one after the other.

    `groups.JobGroup` is the one there is; methods name this protocol, so that groups may import
    adapters.
    """

    @property
    def index(self) -> int:
        """Number of the group in the step."""

    @property
    def method(self) -> Method:
        """The method of its jobs."""

    @property
    def config(self) -> Any:
        """Configuration of the first job: structure is common to all, scales and dropout are not."""

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """One per job."""

    @property
    def training(self) -> bool:
        """Whether dropout applies and gradients are wanted."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of the stacked copies (`stack`)."""

    @property
    def start(self) -> int:
        """Row of the packed step where the group begins."""

    @property
    def n_rows(self) -> int:
        """Tokens of the group."""

    @property
    def slices(self) -> tuple[tuple[int, int], ...]:
        """Each job's rows within the group."""

    @property
    def offs(self) -> Tensor:
        """[jobs] int32: where each job's rows end within the group."""

    @property
    def job_of_row(self) -> Tensor:
        """[n_rows] int64: index of the row's job within the group."""

    def put(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        """Host numbers as a tensor on the group's device, without waiting for it."""

    def sizes_column(self, dtype: torch.dtype) -> Tensor:
        """[jobs, 1]: each job's tokens."""

    def stack(self, key: str) -> Tensor:
        """The jobs' parameters `key` as [jobs, *shape] in the compute dtype."""

    def add_grad(self, key: str, grads: Tensor) -> None:
        """Add [jobs, *shape] to the jobs' gradients."""

    def column(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        """One value per job as a column [n_rows, 1], or [1, 1] where all are equal."""

    def drop_key(self, rates: Sequence[float], layer: int, projection: str) -> DropKey | None:
        """Key of a site's dropout masks; None where no job of the group drops anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What a method that replaces the FFN between its projections is given: one group's rows of one layer."""

    group: GroupRows
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


class Method:
    """A kind of adapter. One object per method, without state; a new one is a folder and a line in `METHODS`."""

    name: ClassVar[str]
    config_type: ClassVar[type[Any]]
    has_block: ClassVar[bool] = False
    """Whether it replaces the FFN between its projections (`block`); such jobs stand last in a
    packed step.
    """

    def specs(self, config: Any, base: BaseSites) -> tuple[TensorSpec, ...]:
        """The tensors of one adapter. ValueError where the configuration does not fit the base."""
        raise NotImplementedError

    def plans(self, config: Any, base: BaseSites) -> Plans:
        """Low-rank updates by (layer, linear)."""
        raise NotImplementedError

    def structure(self, config: Any, base: BaseSites) -> tuple[Any, ...]:
        """What must be equal for two jobs to share grouped GEMMs; scales, dropout and loss weights need not be."""
        raise NotImplementedError

    def route(self, group: GroupRows, experts: int, logits: Tensor, stats: RouterStats) -> Tensor:
        """Weights [rows, experts] of a linear's experts from its gate's logits; adds what the loss needs to `stats`."""
        raise NotImplementedError

    def block(self, block: Block) -> tuple[Tensor, Tensor | None]:
        """([rows, f] for the frozen down-projection, [rows, d] to add after it or None); where `has_block`."""
        raise NotImplementedError

    def auxiliary(self, group: GroupRows, stats: RouterStats) -> Tensor | None:
        """Auxiliary loss of each job [jobs], or None."""
        return None

    def active_experts(self, group: GroupRows, stats: RouterStats) -> Tensor | None:
        """Mean experts kept per token of each job [jobs], where the routing decides it."""
        return None

    def finish_initialisation(self, adapter: Adapter, weight_of: Any) -> None:
        """Initial values that depend on the base: `weight_of(layer, name)` gives a frozen weight."""


class Adapter:
    """A trainable adapter. `seed` keys its initial values and its dropout masks, never those of its peers.

    Raises ValueError where the configuration does not fit the base.
    """

    def __init__(
        self,
        job_id: str,
        method: Method,
        config: Any,
        base: BaseSites,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        self.job_id = job_id
        self.method = method
        self.config = config
        self.seed = seed
        self.plans = method.plans(config, base)
        self.structure = method.structure(config, base)
        self.slab = Slab(SlabLayout(method.specs(config, base)), device=device, dtype=dtype)
        self.slab.initialise(seed, generator=generator)

    @property
    def n_params(self) -> int:
        """Trainable parameters (without the padding of ranks)."""
        return self.slab.layout.n_params


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

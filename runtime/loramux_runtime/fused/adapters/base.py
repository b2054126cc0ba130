"""This module says what an adapter method is to the fused step, and what one job's adapter is.

A method has tensors, low-rank plans, routing and, for some, a block of the FFN.
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
    """A method sees the rows that it works on through this protocol.

    They are the rows of some jobs of one step, one job after the other. `groups.JobGroup` is the
    one class that there is; methods name this protocol, so that groups may import adapters.
    """

    @property
    def index(self) -> int:
        """The number of the group in the step."""

    @property
    def method(self) -> Method:
        """The method of the group's jobs."""

    @property
    def config(self) -> Any:
        """The configuration of the first job.

        Structure is common to all jobs, scales and dropout are not.
        """

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters of the group, one per job."""

    @property
    def training(self) -> bool:
        """Whether dropout applies and gradients are wanted."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the stacked copies (`stack`)."""

    @property
    def start(self) -> int:
        """The row of the packed step where the group begins."""

    @property
    def n_rows(self) -> int:
        """The number of tokens of the group."""

    @property
    def slices(self) -> tuple[tuple[int, int], ...]:
        """The rows of each job within the group."""

    @property
    def offs(self) -> Tensor:
        """The ends of each job's rows within the group, [jobs] int32."""

    @property
    def job_of_row(self) -> Tensor:
        """The index of each row's job within the group, [n_rows] int64."""

    def put(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        """Return host numbers as a tensor on the group's device, without waiting for it."""

    def sizes_column(self, dtype: torch.dtype) -> Tensor:
        """Return the number of each job's tokens, [jobs, 1]."""

    def stack(self, key: str) -> Tensor:
        """Return the jobs' parameters `key` as [jobs, *shape] in the compute dtype."""

    def add_grad(self, key: str, grads: Tensor) -> None:
        """Add [jobs, *shape] to the gradients of the jobs' parameters `key`."""

    def column(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        """Return one value per job as a column [n_rows, 1], or [1, 1] where all are equal."""

    def drop_key(self, rates: Sequence[float], layer: int, projection: str) -> DropKey | None:
        """Return the key of a site's dropout masks.

        None where no job of the group drops anything.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block is what a method that replaces the FFN between its projections is given.

    It has one group's rows of one layer.
    """

    group: GroupRows
    layer: int
    hidden: Tensor
    """[rows, d]: input of the FFN."""
    gate: Tensor
    """[rows, f]: frozen gate projection of `hidden` (bias included), likewise `up`."""
    up: Tensor
    act: str
    anchor: Tensor
    stats: RouterStats
    weight: Callable[[str], Tensor]
    """Frozen weight by name: gate_proj, up_proj, down_proj.

    The weight is a slice where the base fuses two.
    """
    linear: Callable[[str, Tensor, tuple[tuple[int, int], ...]], Tensor]
    """The frozen linear, without its bias, on rows in these slices."""


class Method:
    """A method is a kind of adapter.

    There is one object per method, without state. A new method is a folder and a line in `METHODS`.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[Any]]
    has_block: ClassVar[bool] = False
    """Whether it replaces the FFN between its projections (`block`).

    Jobs of such a method stand last in a packed step.
    """

    def specs(self, config: Any, base: BaseSites) -> tuple[TensorSpec, ...]:
        """Return the tensors of one adapter.

        Raises ValueError where the configuration does not fit the base.
        """
        raise NotImplementedError  # every method has its own

    def plans(self, config: Any, base: BaseSites) -> Plans:
        """Return the low-rank updates by (layer, linear)."""
        raise NotImplementedError  # every method has its own

    def structure(self, config: Any, base: BaseSites) -> tuple[Any, ...]:
        """Return what must be equal for two jobs to share grouped GEMMs.

        Scales, dropout and loss weights need not be equal.
        """
        raise NotImplementedError  # every method has its own

    def route(self, group: GroupRows, experts: int, logits: Tensor, stats: RouterStats) -> Tensor:
        """Return the weights [rows, experts] of a linear's experts from its gate's logits.

        What the loss needs is added to `stats`.
        """
        raise NotImplementedError  # methods with a router have it

    def block(self, block: Block) -> tuple[Tensor, Tensor | None]:
        """Return what goes into the frozen down-projection and what is added after it.

        They are [rows, f], and [rows, d] or None. Only methods where `has_block` have this.
        """
        raise NotImplementedError  # only asked of those that have a block

    def auxiliary(self, group: GroupRows, stats: RouterStats) -> Tensor | None:
        """Return the auxiliary loss of each job [jobs], or None."""
        return None

    def active_experts(self, group: GroupRows, stats: RouterStats) -> Tensor | None:
        """Return the mean experts kept per token of each job [jobs].

        None where the routing does not decide it.
        """
        return None

    def finish_initialisation(self, adapter: Adapter, weight_of: Any) -> None:
        """Set the initial values that depend on the base.

        `weight_of(layer, name)` gives a frozen weight.
        """


class Adapter:
    """An adapter holds what one job trains.

    `seed` keys its initial values and its dropout masks, never those of its peers.

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
        """The number of trainable parameters (without the padding of ranks)."""
        return self.slab.layout.n_params


def scale_of(alpha: float, rank: int, rslora: bool) -> float:
    """Return the factor that LoRA puts on B A."""
    return float(alpha / rank**0.5 if rslora else alpha / rank)

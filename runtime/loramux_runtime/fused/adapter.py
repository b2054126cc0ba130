"""One job's adapter on a base model: configuration, parameters, and where they go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from loramux_runtime.fused.slab import Slab, SlabLayout

if TYPE_CHECKING:
    from loramux_runtime.fused.adapters.base import BaseSites, Method


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

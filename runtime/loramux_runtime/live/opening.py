"""This module opens what `loramux run` trains on.

That is the one device of its own process, or Ray actors with a device each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from loramux_runtime.fused.base_model import BaseModel
from loramux_runtime.fused.memory_meter import keep_freed_memory
from loramux_runtime.fused.torch_devices import card_name, choose_device, set_threads
from loramux_runtime.jobs.bases import open_base, outline_base
from loramux_runtime.jobs.jobs_file import BaseConfig
from loramux_runtime.live.drive.pool import WorkerPool
from loramux_runtime.live.drive.ray_cluster import RayCluster
from loramux_runtime.live.drive.ray_pool import RayPool
from loramux_runtime.live.settings import EngineChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """Holds devices and a base model that are ready to train."""

    where: torch.device
    """Device of each worker, or the one of this process."""
    card: str
    base: BaseModel
    pool: WorkerPool | None

    @property
    def device(self) -> str:
        """What the devices are, for people."""
        return str(self.where) if self.pool is None else self.pool.device


@contextmanager
def opened(choice: EngineChoice, model: BaseConfig, *, recompute: bool) -> Iterator[Opened]:
    """Open the devices with the base model loaded.

    Actors and a Ray cluster of our own end with it.
    """

    if choice.engine == "local":
        where = choose_device(choice.device)
        base = open_base(model, where)
        set_threads(choice.threads, base.sites.hidden)
        if where.type == "cpu":
            keep_freed_memory()
        yield Opened(where=where, card=card_name(where), base=base, pool=None)
        return

    set_threads(1, 0)  # nothing is computed here
    cluster = RayCluster(choice.address, cpus=choice.devices or 1)
    try:
        pool = RayPool(
            cluster,
            model.model_dump(mode="json"),
            choice.devices,
            device=choice.device,
            threads=choice.threads,
            recompute=recompute,
        )
        yield Opened(
            where=choose_device(pool.kind, here=False),
            card=pool.started[0].device,
            base=outline_base(model),
            pool=pool,
        )
    finally:
        cluster.close()

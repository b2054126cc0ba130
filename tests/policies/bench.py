"""Job classes and devices of two types, priced by the cost model.

What ledgers and fused devices are tested on.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from loramux_policies.loop.intake import Intake
from loramux_policies.loop.job import Job
from loramux_policies.loop.ledger import Ledger
from loramux_profiles.cost import CostModel
from loramux_profiles.devices import load_device

from ..simulator.workloads import BASES, GIB, job

TYPES = ("l4", "a100-40g")


class Bench:
    """Job classes and devices of two types under one way of fusing and copying.

    Costs are built once.
    """

    def __init__(self, fusion: Any, copies: Any) -> None:
        self.fusion, self.copies = fusion, copies
        self.models = [CostModel(load_device(name), fusion=fusion, copies=copies) for name in TYPES]
        intake = Intake(self.models, [3, 3], oracle=False, unschedulable=lambda *_: None)
        rng = np.random.default_rng(11)
        self.jobs: list[Job] = []
        for i in range(60):
            spec = job(
                f"j{i}",
                base_model=str(rng.choice(BASES)),
                method=str(rng.choice(["lora", "mixlora"])),
                batch_size=int(rng.choice([1, 3, 8])),
                seq_len=float(rng.choice([40, 300, 900])),
                rank=int(rng.choice([4, 64])),
                mem_bytes=int(rng.integers(1, 20)) * GIB if rng.random() < 0.25 else None,
            )
            made = intake.job(i, spec)
            if made is not None:
                self.jobs.append(made)

    def ledger(self, device_id: int, type_index: int, seats: float = float("inf")) -> Ledger:
        model = self.models[type_index]
        return Ledger(
            device_id,
            type_index,
            capacity=float(model.capacity_bytes),
            margin=model.upper_margin,
            padded=self.fusion == "padded",
            separate=self.copies == "separate",
            seats_max=seats,
        )

    def fitting(self, type_index: int) -> list[Job]:
        return [j for j in self.jobs if j.costs[type_index] is not None]


@lru_cache
def bench_of(fusion: str, copies: str) -> Bench:
    return Bench(fusion, copies)

"""The work that bench_runtime.py times.

A small llama, jobs with rows of seeded lengths, and interleaved timing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from transformers import AutoConfig

from loramux_runtime.fused.adapters.base import Adapter
from loramux_runtime.fused.base_model import BaseModel, build_base
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import MicroBatch, Part

SHAPE: Final = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 8000,
    "max_position_embeddings": 2048,
    "attention_bias": False,
    "mlp_bias": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""8 heads of 64: the head size that every peer's attention takes."""
LR: Final = 1e-4
IGNORED: Final = -100

Rows = list[list[np.ndarray[Any, np.dtype[np.int64]]]]
"""By job, its micro-batch: one array of token ids per row."""


def config(**changes: Any) -> Any:
    """transformers' configuration of the small llama."""
    return AutoConfig.for_model("llama", **{**SHAPE, **changes})


def build(**changes: Any) -> BaseModel:
    """It with random weights in fp32."""
    return build_base(config(**changes), dtype="fp32", seed=0)


def mixed_rows(typical: Sequence[int], batch: int = 4, spread: float = 0.4, seed: int = 0) -> Rows:
    """Rows between (1 - spread) and (1 + spread) times the job's typical length, uniformly."""
    rng = np.random.default_rng(seed)
    lengths = [rng.integers(round(n * (1 - spread)), round(n * (1 + spread)) + 1, batch) for n in typical]
    return [[rng.integers(3, SHAPE["vocab_size"], int(n)) for n in job] for job in lengths]


def real_tokens(rows: Rows) -> int:
    """Tokens that are no pads."""
    return sum(len(row) for job in rows for row in job)


def padded_tokens(rows: Rows, together: bool) -> int:
    """Tokens with pads: to each job's longest row, or to the longest of all."""
    longest = [max(map(len, job)) for job in rows]
    return sum(len(job) * (max(longest) if together else own) for job, own in zip(rows, longest, strict=True))


def labels_of(row: np.ndarray[Any, np.dtype[np.int64]], answers: bool) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Every token is learned, or only an answer: the row's second half."""
    labels = row.copy()
    if answers:
        labels[: len(row) // 2] = IGNORED
    return labels


class Fused:
    """loramux on these jobs: a fused step and each job's AdamW, one call a step."""

    def __init__(
        self,
        base: BaseModel,
        jobs: Sequence[tuple[str, Any]],
        rows: Rows,
        *,
        exact: bool = True,
        answers: bool = False,
    ) -> None:
        self.model = FusedModel(base, exact=exact)
        self.rows = rows
        self.labels = [[labels_of(row, answers) for row in job] for job in rows]
        self.adapters = [self.model.new_adapter(f"job-{i}", *job, seed=i) for i, job in enumerate(jobs)]
        self.optimizers = [adamw(adapter) for adapter in self.adapters]
        self.steps = 0

    def parts(self) -> list[Part]:
        """The step's micro-batches."""
        return [
            Part(
                adapter=adapter,
                batch=MicroBatch(
                    tokens=tuple(rows), labels=tuple(labels), samples=tuple(range(len(rows))), step=self.steps
                ),
            )
            for adapter, rows, labels in zip(self.adapters, self.rows, self.labels, strict=True)
        ]

    def __call__(self) -> None:
        self.model.step(self.parts())
        self.steps += 1
        for adapter, optimizer in zip(self.adapters, self.optimizers, strict=True):
            optimizer.step()
            adapter.slab.version += 1
            adapter.slab.grads.zero_()


def adamw(adapter: Adapter) -> torch.optim.Optimizer:
    """AdamW over a job's flat buffer."""
    flat = torch.nn.Parameter(adapter.slab.params)
    flat.grad = adapter.slab.grads
    return torch.optim.AdamW([flat], lr=LR, fused=True)


def timed(step: Callable[[], object]) -> Callable[[], float]:
    """CPU-seconds of one call."""

    def run() -> float:
        start = time.process_time()
        step()
        return time.process_time() - start

    return run


def interleave(runners: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """CPU-seconds of each runner's step, `repeats` times in turn, after a warm-up.

    The order is reversed every other time.

    The machine is shared: only what was measured in turn is compared.
    """
    for run in runners.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(repeats):
        for name in list(runners)[:: 1 if turn % 2 else -1]:
            found[name].append(runners[name]())
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of a table."""

    name: str
    seconds: float
    """Median CPU-seconds of a step."""
    low: float
    high: float
    """Quartiles."""
    ratio: float
    """Median over the turns of the reference's seconds over these (more is faster) or the other way
    round.
    """
    ratio_low: float
    ratio_high: float
    tokens_per_cpu_second: float


def figures(times: Mapping[str, Sequence[float]], reference: str, tokens: int, *, cost: bool = False) -> list[Figure]:
    """Medians and quartiles; ratios are of measurements of the same turn.

    `cost`: own over reference's seconds.
    """
    lines = []
    for name, own in times.items():
        ratios = [(a / b if cost else b / a) for a, b in zip(own, times[reference], strict=True)]
        low, middle, high = quartiles(own)
        ratio_low, ratio, ratio_high = quartiles(ratios)
        lines.append(
            Figure(
                name=name,
                seconds=middle,
                low=low,
                high=high,
                ratio=ratio,
                ratio_low=ratio_low,
                ratio_high=ratio_high,
                tokens_per_cpu_second=tokens / middle,
            )
        )
    return lines


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high

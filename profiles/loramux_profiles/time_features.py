"""This module counts what the time of a fused step is made of, by job.

It counts FLOPs, bytes, elements and operations. Every count is linear in five numbers of a job
(`JOB_TERMS`): 1, its tokens, the sum of its squared row lengths, its labels and its rows. So a
fitted time falls apart into coefficients by job, which schedulers add and remove. The counts follow
the runtime's operations (lowrank, expert_ffn, routing, dora, loss, attention of loramux_runtime),
forward and backward; what recomputation runs again is counted again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from loramux_profiles.shapes import ATTENTION, Linear, ModelShape
from loramux_profiles.step_point import AdapterPoint, JobPoint, StepPoint
from loramux_profiles.widths import experts_by_layer, multiple_of_8, rank_bucket
from loramux_traces.arrays import Floats

JOB_TERMS: Final = ("job", "token", "square", "label", "row")

#: Feature -> (unit of its coefficient, what it counts). The order is that of every feature vector.
FEATURES: Final[dict[str, tuple[str, str]]] = {
    "step": ("s", "one, for the step itself"),
    "step_again": ("s", "one where layers are recomputed"),
    "job": ("s", "jobs: packing, loss, reading back, optimizer"),
    "frozen_flops": ("s/FLOP", "frozen matrices of the layers"),
    "frozen_calls": ("s/call", "their calls: one per job, linear, layer and direction in exact mode"),
    "head_flops": ("s/FLOP", "logits and their gradient, positions with a label only"),
    "attention_flops": ("s/FLOP", "attention, all products"),
    "attention_calls": ("s/call", "rows times layers: attention runs sequence by sequence"),
    "pair_calls": ("s/call", "low-rank pairs: job, linear, layer"),
    "pair_flops": ("s/FLOP", "their products, at the padded rank"),
    "pair_traffic": ("s/B", "wide inputs and outputs that pairs read and write"),
    "narrow_elements": ("s/element", "tokens times padded rank, pairs without a router"),
    "drop_elements": ("s/element", "dropout masks made and applied"),
    "drop_calls": ("s/call", "blocks and hashes of dropout, by linear"),
    "router_flops": ("s/FLOP", "gates"),
    "mola_calls": ("s/call", "routings of MoLA: job, linear, layer"),
    "loramoe_calls": ("s/call", "routings of LoRAMoE"),
    "dynmole_calls": ("s/call", "routings of DynMoLE"),
    "mola_elements": ("s/element", "tokens times experts that MoLA routes"),
    "loramoe_elements": ("s/element", "the same of LoRAMoE"),
    "dynmole_elements": ("s/element", "the same of DynMoLE, whose ranking and entropy cost most"),
    "mixture_elements": ("s/element", "tokens times experts times rank, weighted by the routing"),
    "block_calls": ("s/call", "MixLoRA blocks: job, layer"),
    "expert_calls": ("s/call", "groups of their grouped products: experts times layers"),
    "slot_elements": ("s/element", "tokens times chosen experts times FFN width"),
    "slot_flops": ("s/FLOP", "products by slot"),
    "wide_flops": ("s/FLOP", "products of all experts by token"),
    "dora_calls": ("s/call", "decomposed linears: job, linear, layer"),
    "dora_weights": ("s/element", "weights whose row norms DoRA takes, by expert"),
    "dora_elements": ("s/element", "outputs that DoRA scales"),
    "dora_flops": ("s/FLOP", "frozen products on dropped inputs"),
    "parameters": ("s/parameter", "trainable parameters with padding: optimizer, gradients, moments"),
}
INDEX: Final = {name: i for i, name in enumerate(FEATURES)}


class _Counts:
    """Collects the features of one job as rows of [features, terms]."""

    def __init__(self) -> None:
        self.table = np.zeros((len(FEATURES), len(JOB_TERMS)))

    def add(self, name: str, *, job: float = 0.0, token: float = 0.0, square: float = 0.0, label: float = 0.0) -> None:
        self.table[INDEX[name], :4] += (job, token, square, label)

    def add_rows(self, name: str, row: float) -> None:
        self.table[INDEX[name], 4] += row


@lru_cache(maxsize=4096)
def job_counts(shape: ModelShape, adapter: AdapterPoint, recompute: bool) -> Floats:
    """Return the features of a job, [features, terms].

    Multiplied by (1, tokens, squares, labels, rows) they are its part of a step.
    """
    counts = _Counts()
    layers, again = shape.layers, float(recompute)
    linears = shape.linears
    sizes = sum(linear.size for linear in linears)
    counts.add("job", job=1)
    counts.add("frozen_flops", token=2 * layers * sizes * (2 + again))
    counts.add("frozen_calls", job=layers * len(linears) * (2 + again))
    counts.add("head_flops", label=4.0 * shape.vocab * shape.hidden)
    counts.add("attention_flops", square=shape.q_dim * layers * (7 + 2 * again))
    counts.add_rows("attention_calls", layers * (2 + again))
    targets = shape.targets(adapter.targets)
    if adapter.method == "mixlora":
        if adapter.targets == "all-linear":
            _pairs(counts, shape, tuple(t for t in linears if t.name in ATTENTION), adapter, again)
        _experts(counts, shape, adapter, again)
    elif adapter.method == "lora":
        _pairs(counts, shape, targets, adapter, again)
    else:
        _mixtures(counts, shape, targets, adapter, again)
    counts.table.setflags(write=False)
    return counts.table


def _pairs(
    counts: _Counts, shape: ModelShape, targets: tuple[Linear, ...], adapter: AdapterPoint, again: float
) -> None:
    """Count low-rank pairs without a router, and DoRA's decomposition of them."""
    layers, width = shape.layers, rank_bucket(adapter.rank)
    for t in targets:
        counts.add("pair_calls", job=layers * (2 + again))
        _low_rank(counts, t, width, layers, again)
        counts.add("narrow_elements", token=layers * width * (2 + again))
        counts.add("parameters", job=layers * t.lora(width))
        if adapter.dropout:
            _dropout(counts, t, layers, again)
        if adapter.dora:
            counts.add("dora_calls", job=layers * (2 + again))
            counts.add("dora_weights", job=layers * t.size * (1 + again))
            counts.add("dora_elements", token=layers * t.n_out * (2 + again))
            counts.add("parameters", job=layers * t.n_out)
            if adapter.dropout:
                counts.add("dora_flops", token=2 * layers * t.size * (2 + again))


def _low_rank(counts: _Counts, t: Linear, width: int, layers: int, again: float) -> None:
    """Count the products with A and B forward, and the four of the backward pass."""
    counts.add("pair_flops", token=2 * layers * width * (t.n_in + t.n_out) * (3 + again))
    counts.add("pair_traffic", token=4 * layers * (t.n_in + t.n_out) * (3 + again))


def _dropout(counts: _Counts, t: Linear, layers: int, again: float) -> None:
    counts.add("drop_elements", token=layers * t.n_in * (2 + again))
    counts.add("drop_calls", job=layers * (2 + again))


def _mixtures(
    counts: _Counts, shape: ModelShape, targets: tuple[Linear, ...], adapter: AdapterPoint, again: float
) -> None:
    """Count the routed linears of MoLA, LoRAMoE and DynMoLE.

    Each has one pair of rank experts * r, weighted by token and expert.
    """
    method = adapter.method
    for experts in experts_by_layer(adapter.experts, shape.layers):
        width = multiple_of_8(experts * adapter.rank)
        for t in targets:
            counts.add("pair_calls", job=2 + again)
            _low_rank(counts, t, width, 1, again)
            counts.add("mixture_elements", token=width * (2 + again))
            counts.add("router_flops", token=2 * experts * t.n_in * (3 + again))
            counts.add(f"{method}_calls", job=2 + again)
            counts.add(f"{method}_elements", token=experts * (2 + again))
            counts.add("parameters", job=t.lora(width) + experts * t.n_in)
            if adapter.dropout:
                _dropout(counts, t, 1, again)


def _experts(counts: _Counts, shape: ModelShape, adapter: AdapterPoint, again: float) -> None:
    """Count MixLoRA's FFN: one router a layer, and slots of the chosen experts."""
    layers, d, f = shape.layers, shape.hidden, shape.ffn
    experts = experts_by_layer(adapter.experts, layers)[0]
    k, width = adapter.top_k, multiple_of_8(adapter.rank)
    counts.add("block_calls", job=layers * (2 + again))
    counts.add("expert_calls", job=layers * experts * (2 + again))
    counts.add("router_flops", token=2 * layers * experts * d * (3 + again))
    counts.add("slot_elements", token=layers * k * f * (2 + again))
    # Per slot: B of gate and up, A of down. Per token, all experts wide: A of gate and up, B of
    # down.
    counts.add("slot_flops", token=2 * layers * k * 3 * width * f * (3 + again))
    counts.add("wide_flops", token=2 * layers * 3 * experts * width * d * (3 + again))
    counts.add("parameters", job=layers * experts * (3 * width * (d + f) + d))
    if adapter.dropout:
        counts.add("drop_elements", token=layers * (2 * d + k * f) * (2 + again))
        counts.add("drop_calls", job=layers * 3 * (2 + again))
    if adapter.dora:
        size = d * f
        counts.add("dora_calls", job=3 * layers * (2 + again))
        counts.add("dora_weights", job=3 * layers * experts * size * (1 + again))
        counts.add("dora_elements", token=layers * k * (2 * f + d) * (2 + again))
        counts.add("parameters", job=layers * experts * (2 * f + d))
        # The down-projection runs on every slot, and all three again on dropped inputs
        counts.add("dora_flops", token=2 * layers * size * (k + (2 + k if adapter.dropout else 0)) * (2 + again))


def numbers(job: JobPoint) -> Floats:
    """Return (1, tokens, squares, labels, rows) of a job."""
    return np.asarray((1.0, job.tokens, job.squares, job.labels, len(job.lengths)))


#: Features that count kernels which several jobs share: they count once per structure where jobs
#: are fused in groups.
SHARED: Final = ("frozen_calls", "pair_calls", "drop_calls", "mola_calls", "loramoe_calls", "dynmole_calls")
SHARED_ROWS: Final = tuple(INDEX[name] for name in (*SHARED, "block_calls"))


def structure(adapter: AdapterPoint) -> tuple[object, ...]:
    """Return what must be equal for two jobs to share kernels."""
    rank = rank_bucket(adapter.rank) if adapter.method == "lora" else adapter.rank
    return (adapter.method, rank, adapter.experts, adapter.top_k, adapter.targets, adapter.dora)


def step_features(shape: ModelShape, point: StepPoint, *, exact: bool = True) -> Floats:
    """Return the features of a fused step, [features].

    Without `exact`, frozen matrices are called once for all jobs, and the kernels of pairs once per
    structure.
    """
    total = np.zeros(len(FEATURES))
    total[INDEX["step"]] = 1.0
    total[INDEX["step_again"]] = float(point.recompute)
    seen: set[tuple[object, ...]] = set()
    for i, job in enumerate(point.jobs):
        own = job_counts(shape, job.adapter, point.recompute) @ numbers(job)
        if not exact:
            key = structure(job.adapter)
            if key in seen:
                own[list(SHARED_ROWS)] = 0.0
            elif i:
                own[INDEX["frozen_calls"]] = 0.0
            seen.add(key)
        total += own
    return total

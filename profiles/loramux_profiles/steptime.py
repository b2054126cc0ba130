"""The step-time model gives the seconds of a step from a shape and a device.

It has seconds per token, per squared length, per step and per launch:

    t = max(c0 + c1 * kernels, rho * 4P * T / (eta_g * F) + attention / (eta_a * F) + bytes / BW)
        + c2 * sum N

(profiles/README.md) with P the matmul parameters without the embedding, F the peak rate, N the
trainable parameters, and rho = 1.5 with full recompute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from loramux_profiles.adapters import AdapterCost
from loramux_profiles.devices import DeviceProfile
from loramux_profiles.memory import Fusion, layer_bytes, round_up
from loramux_profiles.shapes import ModelShape
from loramux_profiles.work import BaseCost, JobCost
from loramux_traces.arrays import Ints

LAYER_KERNELS: Final = 90
"""Launches of a frozen layer per step, forward and backward, eager.

They are assumed (counted on a Llama layer, rounded).
"""
MODEL_KERNELS: Final = 120
"""Launches outside the layers: embedding, final norm, loss chunks (assumed)."""
FP32_RATE: Final = 0.5
"""fp32 runs (as TF32) at half the bf16 rate on the cards that ship."""


def peak_flops(device: DeviceProfile, dtype: str) -> float:
    """Return the matrix rate of a device at a precision, FLOP/s."""
    return device.peak_flops * (FP32_RATE if dtype == "fp32" else 1.0)


def frozen_token_s(shape: ModelShape, device: DeviceProfile, dtype: str, *, recompute: bool = False) -> float:
    """Return the seconds per token in the frozen matrices.

    They are forward, backward to the inputs, and forward again with recompute.
    """
    flops = (6.0 if recompute else 4.0) * shape.matmul_params
    return flops / (device.eta_g * peak_flops(device, dtype))


def token_s(
    shape: ModelShape, adapter: AdapterCost, device: DeviceProfile, *, dtype: str = "bf16", recompute: bool = False
) -> float:
    """Return the seconds that one token of a job adds to a step.

    They are of the frozen matrices, the adapter matrices, and the traffic of its activations.
    """
    own = adapter.flops_per_token * (4 / 3 if recompute else 1.0) / (device.eta_l * peak_flops(device, dtype))
    width = 2.0 if dtype == "fp32" else 1.0
    moved = shape.layers * layer_bytes(shape, adapter) * width * (1.5 if recompute else 1.0)
    return (
        frozen_token_s(shape, device, dtype, recompute=recompute)
        + own
        + device.activation_passes * moved / device.memory_bandwidth
    )


def square_s(shape: ModelShape, device: DeviceProfile, *, dtype: str = "bf16", recompute: bool = False) -> float:
    """Return the seconds per squared row length.

    Causal attention is 7 * s * d FLOPs per token and layer, 9 with recompute.
    """
    flops = (9.0 if recompute else 7.0) * shape.q_dim * shape.layers
    return flops / (device.eta_a * peak_flops(device, dtype))


def floor_s(shape: ModelShape, device: DeviceProfile) -> float:
    """Return the launch-bound time of a step of the base alone, in seconds."""
    return device.c0 + device.c1 * (shape.layers * LAYER_KERNELS + MODEL_KERNELS)


def method_floor_s(shape: ModelShape, adapter: AdapterCost, device: DeviceProfile) -> float:
    """Return the launch time that the first job of a method adds, in seconds.

    Its kernels serve all jobs of the method at once.
    """
    return device.c1 * shape.layers * adapter.kernels_per_layer


def method_floors(jobs: Sequence[JobCost]) -> float:
    """Return the launch time that the methods of a set add, each once, in seconds."""
    return sum({job.method: job.method_floor_s for job in jobs}.values())


def step_seconds(base: BaseCost, floors_s: float, work_s: float, fixed_s: float) -> float:
    """Return the seconds of one fused step.

    `floors_s` is of its methods, `work_s` of its tokens and squares, `fixed_s` of its optimizers.
    """
    return max(base.floor_s + floors_s, base.read_s + work_s) + fixed_s


def step_of_lengths(jobs: Sequence[JobCost], lengths: Sequence[Ints], fusion: Fusion) -> tuple[float, int]:
    """Return (seconds, tokens computed) of the fused step of these jobs.

    Job i has the rows of `lengths[i]`, and all jobs have one base. This is the slow reference: the
    simulator's step fidelity evaluates the same sum incrementally.
    """
    base = jobs[0].base
    fixed = sum(job.step_s for job in jobs)
    if fusion == "padded":
        longest = round_up(max(int(rows.max()) for rows in lengths))
        work = sum(
            len(rows) * longest * (job.token_s + job.square_s * longest)
            for job, rows in zip(jobs, lengths, strict=True)
        )
        computed = longest * sum(len(rows) for rows in lengths)
    else:
        real = sum(int(rows.sum()) for rows in lengths)
        computed = round_up(real)
        work = (computed - real) * base.token_s
        for job, rows in zip(jobs, lengths, strict=True):
            work += job.token_s * int(rows.sum()) + job.square_s * float((rows.astype(np.float64) ** 2).sum())
    return step_seconds(base, method_floors(jobs), work, fixed), computed

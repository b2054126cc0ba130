"""The memory model says what a base and a job add to a device.

It also gives the bytes of a set of jobs (slow reference). Derived in
profiles/README.md (a prior for an eager Hugging Face Llama in bf16), after arXiv 2312.02515
section 4. Values
are expected values; `bounds` says by how much to exceed them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from loramux_profiles.adapters import AdapterCost
from loramux_profiles.devices import DeviceProfile
from loramux_profiles.shapes import ModelShape
from loramux_profiles.work import ROUNDING, JobCost

Fusion = Literal["packed", "padded"]
Copies = Literal["shared", "separate"]
STATE_BYTES: Final = 16
"""Bytes per trainable parameter: fp32 weight, gradient and two Adam moments."""
COPY_BYTES: Final = 2
"""Bytes per trainable parameter of the bf16 or fp16 copy that is computed with."""
LOGIT_BYTES: Final = 12
"""Bytes per token and vocabulary entry while the loss is computed.

They are 16-bit logits, their fp32 copy, and gradients.
"""
TAIL_BYTES: Final = 16
"""Bytes per token and hidden unit outside the layers.

They are the embedding, the final norm in fp32, the hidden state and its gradients.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """Says what of the runtime the memory and time models need to know.

    The defaults are loramux's own runtime.
    """

    expert_path: Literal["dense", "skip"] = "dense"
    """`skip`: masked experts of the plug-in methods are not computed.

    The cost then follows the routing.
    """
    stored_dropout: bool = False
    """Whether dropout masks and outputs are kept for the backward pass, not generated again."""
    chunked_loss: bool = True
    eager_attention: bool = False
    """Whether attention keeps its square of probabilities (no fused kernel)."""


def layer_bytes(shape: ModelShape, adapter: AdapterCost, *, dropout: bool = False) -> float:
    """Return the bytes of activations that one layer keeps per token in bf16.

    They are 16d + 2(d + 2kv) + 8f + 4H + 8 and the adapter's own. With the 14r of LoRA on seven
    linears this is the formula of profiles/README.md; stored dropout adds 3 bytes per input of an
    adapted linear (mask and 16-bit copy), 3(6d + f) in all.
    """
    d, f = shape.hidden, shape.ffn
    frozen = 16 * d + 2 * (shape.q_dim + 2 * shape.kv_dim) + 8 * f + 4 * shape.heads + 8
    return frozen + adapter.saved_bytes + (3 * adapter.input_width if dropout else 0)


def token_bytes(
    shape: ModelShape,
    adapter: AdapterCost,
    *,
    dtype: str = "bf16",
    recompute: bool = False,
    dropout: bool = False,
    scale: float = 1.0,
    implementation: Implementation | None = None,
) -> float:
    """Return the bytes that one token of a job adds to the peak of a step.

    With full recompute each layer keeps its input only, and one layer is rebuilt at a time. That
    layer and the loss chunk are never there together. Both are counted (the chunk in the base's
    constant), which errs on the safe side by at most one chunk. fp32 doubles the activations
    (assumed).
    """
    implementation = implementation or Implementation()
    layer = layer_bytes(shape, adapter, dropout=dropout and implementation.stored_dropout) * scale
    inner = 2 * shape.hidden * shape.layers + layer if recompute else shape.layers * layer
    total = inner + TAIL_BYTES * shape.hidden
    if not implementation.chunked_loss:
        total += LOGIT_BYTES * shape.vocab
    return total * (2.0 if dtype == "fp32" else 1.0)


def base_dynamic_bytes(shape: ModelShape, device: DeviceProfile, implementation: Implementation) -> float:
    """Return the constant part of a step's peak in bytes.

    It is workspaces, and one chunk of logits where the loss is chunked.
    """
    chunk = LOGIT_BYTES * shape.vocab * device.loss_chunk_tokens if implementation.chunked_loss else 0.0
    return device.b0_bytes + chunk


def square_bytes(shape: ModelShape, implementation: Implementation) -> float:
    """Return the bytes per squared row length; they are 0 with fused attention.

    Eager attention keeps 16-bit and fp32 probabilities of every head and layer.
    """
    return 6.0 * shape.heads * shape.layers if implementation.eager_attention else 0.0


def own_bytes(params: int, dtype: str) -> int:
    """Return the resident bytes of a job, whatever runs.

    They are the states of every trainable parameter, and its 16-bit copy.
    """
    return params * (STATE_BYTES + (COPY_BYTES if dtype != "fp32" else 0))


def weight_bytes(shape: ModelShape, dtype: str, device: DeviceProfile) -> int:
    """Return the bytes of the frozen weights on a device.

    They are in the base precision of the device's system where it has one of its own.
    """
    each = device.parameters.get("base_weight_bytes")
    if each is None:
        return shape.weight_bytes(dtype)
    return int(each.value * shape.layer_matmul_params + 2 * (shape.params - shape.layer_matmul_params))


def round_up(tokens: float) -> int:
    """Return the tokens rounded up to a multiple of ROUNDING."""
    return -int(-tokens // ROUNDING) * ROUNDING


def set_bytes(jobs: Sequence[JobCost], fusion: Fusion, copies: Copies, margin: float = 0.0) -> float:
    """Return the bytes of a set of jobs on one device at their admission quantiles.

    The dynamic part is raised by `margin`. This is the slow reference for the incremental ledgers
    of the schedulers. A job that gave `mem_bytes` is charged that and nothing else. Bases take
    turns, so only the largest dynamic part counts; separate copies run at once, so all of them
    count.
    """
    total = float(sum(job.own_bytes for job in jobs))
    charged = [job for job in jobs if not job.overridden]
    if copies == "separate":
        for job in charged:
            base = job.base
            total += base.weights_bytes + base.context_bytes
            total += job.alone_q * (1 + margin)
        return total
    groups: dict[str, list[JobCost]] = {}
    for job in charged:
        groups.setdefault(job.base.key, []).append(job)
    if not groups:
        return total
    total += sum(group[0].base.weights_bytes for group in groups.values())
    total += max(group[0].base.context_bytes for group in groups.values())
    return total + (1 + margin) * max(_dynamic(group, fusion) for group in groups.values())


def _dynamic(group: Sequence[JobCost], fusion: Fusion) -> float:
    base = group[0].base
    if fusion == "packed":
        return base.dynamic_of(group)
    length = max(round_up(job.length_q) for job in group)
    return base.dynamic_bytes + sum(
        job.rows * (job.token_bytes * length + job.square_bytes * length * length + job.row_bytes) for job in group
    )

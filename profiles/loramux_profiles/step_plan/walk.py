"""This module is the allocation plan of one layer of a fused step.

It says what the forward pass keeps, and how high the backward pass rises. Every term is an
allocation of the runtime, named by the tensor it is; sizes are in bytes. The plan is written down
from the runtime's code and held against its tracked storages, real and fake
(tests/runtime/test_step_plan.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_plan.structure import FFN, LayerPlan
from loramux_profiles.step_point import JobPoint

ALLOCATION: Final = 512
"""Every allocation is a multiple of this (CUDA's caching allocator; counted so on CPU too)."""
MASK_BLOCK: Final = 1 << 17
"""Elements whose dropout mask is made at a time on CPU (`kernels.dropout`)."""
DEVICE_MASK_BLOCK: Final = 1 << 24
WIDE: Final = 4
"""Bytes of fp32: statistics, routers, losses."""
INDEX: Final = 8


def up(size: float) -> int:
    """Return the bytes of one allocation, a multiple of ALLOCATION."""
    return -int(-size // ALLOCATION) * ALLOCATION


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Holds what is the same for all layers of a step."""

    shape: ModelShape
    width: int
    """Tokens of the step, rounded up to a multiple of 8."""
    element: int
    """Bytes of an activation: 4 or 2."""
    mask_block: int = MASK_BLOCK
    exact: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Holds jobs that share grouped GEMMs; in exact mode it is one job."""

    jobs: tuple[JobPoint, ...]
    tokens: int
    plan: LayerPlan

    @property
    def dropout(self) -> bool:
        return any(job.adapter.dropout for job in self.jobs)

    @property
    def dora(self) -> bool:
        return self.jobs[0].adapter.dora


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Holds the bytes of one layer."""

    saved: int
    """Bytes kept from the forward to the backward pass."""
    recomputed: int
    """Bytes kept with recomputation.

    They are the layer's input, and the slots of experts, which the graph holds on to.
    """
    rise: int
    """Most bytes in its backward pass above what the layers up to it have saved.

    The stream's gradient is included.
    """


def mask_scratch(setting: Setting, tokens: int, channels: int) -> int:
    """Return the bytes of a block of masks and of the hashes that they are made of."""
    rows = min(tokens, max(1, setting.mask_block // channels))
    half = (channels + 1) // 2
    narrow = up(rows * channels * setting.element) if setting.element != WIDE else 0
    return up(tokens * WIDE) + up(rows * channels * WIDE) + up(2 * rows * half * WIDE) + narrow


def router_saved(method: str, tokens: int, experts: int, top_k: int) -> int:
    """Return the bytes that one router of a plug-in method keeps.

    They are probabilities, and what its choice is made of.
    """
    wide = up(tokens * experts * WIDE)
    if method == "loramoe":
        return wide
    if method == "mola":
        return 2 * wide + up(tokens * top_k * WIDE) + up(tokens * top_k * INDEX) + up(tokens * WIDE)
    return 5 * wide  # DynMoLE: p, p + eps, its clamp, the mask, their product


def update_saved(setting: Setting, groups: Sequence[Group], name: str) -> int:
    """Return the bytes of A x of every update of a linear, and of its router's tensors."""
    total = 0
    for group in groups:
        update = group.plan.updates.get(name)
        if update is None:
            continue
        total += up(group.tokens * update.width * setting.element)
        if update.experts:
            adapter = group.jobs[0].adapter
            total += router_saved(adapter.method, group.tokens, update.experts, adapter.top_k)
    return total


def update_backward(
    setting: Setting, groups: Sequence[Group], name: str, n_in: int, n_out: int, *, owned: bool, first: bool = False
) -> int:
    """Return the most bytes that the updates of a linear need in its backward pass.

    Updates go group by group. The bytes of the linear's own gradient come beside them.
    """
    most, e = 0, setting.element
    for group in groups:
        update = group.plan.updates.get(name)
        if update is None or group.dora:
            continue
        tokens, jobs = group.tokens, len(group.jobs)
        narrow = up(tokens * update.width * e)
        d_b = up(jobs * update.width * n_out * e)
        d_a = up(jobs * update.width * n_in * e)
        need = 2 * narrow + d_b
        if jobs > 1 and e != WIDE:  # their gradients in fp32, on the way to each job's own
            d_a += up(jobs * update.width * n_in * WIDE)
        if update.experts:
            need += up(tokens * update.experts * WIDE)
        wide = up(tokens * n_in * e)
        if group.dropout:
            most_here = (0 if owned else wide) + max(mask_scratch(setting, tokens, n_in) + (0 if first else wide), d_a)
        elif jobs > 1 and not first:
            most_here = max(wide, d_a)
        else:
            most_here = d_a
        most = max(most, need + most_here)
    return most


def dora_saved(setting: Setting, groups: Sequence[Group], name: str, n_in: int, n_out: int) -> int:
    """Return the bytes that DoRA keeps of a linear, job by job.

    They are both outputs, masks as bools, and what its magnitudes scale by.
    """
    total = 0
    for group in groups:
        if group.dora and name in group.plan.updates:
            for job in group.jobs:
                outputs = 2 * up(job.tokens * n_out * setting.element)
                masks = up(job.tokens * n_in) if job.adapter.dropout else 0
                total += outputs + masks + 3 * up(n_out * WIDE)
    return total


def dora_backward(setting: Setting, groups: Sequence[Group], name: str, n_in: int, n_out: int) -> int:
    """Return the most bytes in DoRA's backward pass on a linear; 0 without any DoRA."""
    jobs = [(g, job) for g in groups if g.dora and name in g.plan.updates for job in g.jobs]
    most, e = 0, setting.element
    for group, job in jobs:
        width = group.plan.updates[name].width
        need = 2 * up(job.tokens * width * e) + up(width * n_out * e) + up(job.tokens * n_out * e)
        wide = up(job.tokens * n_in * e)
        need += 4 * wide + mask_scratch(setting, job.tokens, n_in) if job.adapter.dropout else 2 * wide
        most = max(most, need)
    return most + (up(setting.width * n_in * e) if len(jobs) > 1 else 0)


def norms_forward(setting: Setting, groups: Sequence[Group]) -> int:
    """Return the most bytes while DoRA takes the norms of W + s B A.

    They are of W A' for every expert, and of W in fp32 where it is not in fp32 already.
    """
    shape, most = setting.shape, 0
    for group in groups:
        if not group.dora:
            continue
        block = group.plan.block
        for t in shape.linears:
            update = group.plan.updates.get(t.name)
            width = update.width if update is not None else 0
            if block is not None and t.name in FFN:
                width = block.experts * block.width
            if width:
                copy = up(t.size * WIDE) if setting.element != WIDE else 0
                most = max(most, copy + 2 * up(width * t.n_out * WIDE))
    return most


def any_update(groups: Sequence[Group], name: str) -> bool:
    return any(name in group.plan.updates for group in groups)


def routed(groups: Sequence[Group], name: str) -> bool:
    return any(name in g.plan.updates and g.plan.updates[name].experts for g in groups)


def router_backward(setting: Setting, groups: Sequence[Group], name: str, n_in: int) -> int:
    """Return the most bytes while a router's gradients are made, group by group.

    Where activations are narrower than a router, they are a group's input in fp32, and what is
    added to the input's gradient, job by job.
    """
    most = 0
    for group in groups:
        update = group.plan.updates.get(name)
        if setting.element == WIDE or update is None or not update.experts:
            continue
        longest = max(job.tokens for job in group.jobs)
        wide = up(group.tokens * n_in * WIDE) + up(longest * n_in * WIDE)
        most = max(most, wide + up(group.tokens * update.experts * WIDE))
    return most


def block_slots(group: Group) -> int:
    """Return the bytes of where MixLoRA's slots are, and of where each expert's end.

    A slot takes five numbers.
    """
    assert group.plan.block is not None
    return 5 * up(group.tokens * group.plan.block.top_k * INDEX) + ALLOCATION


def block_saved(setting: Setting, group: Group) -> int:
    """Return the bytes that MixLoRA's block keeps.

    They are its router, its slots, and A x of every slot for three projections.
    """
    block = group.plan.block
    assert block is not None
    tokens, slots = group.tokens, group.tokens * block.top_k
    router = up(tokens * block.experts * WIDE) + up(slots * WIDE) + up(slots * INDEX) + up(tokens * WIDE)
    e, shape = setting.element, setting.shape
    narrow = 3 * up(slots * block.width * e)
    kept = router + block_slots(group) + up(slots * WIDE) + narrow
    # kept by autograd: of every slot five tensors per projection, two of them fp32, and the gated
    # product
    if group.dora:
        kept += 7 * up(slots * shape.ffn * e) + 4 * up(slots * shape.ffn * WIDE)
        kept += 3 * up(slots * shape.hidden * e) + 2 * up(slots * shape.hidden * WIDE)
        if group.dropout:
            kept += up(slots * shape.ffn) + 2 * up(tokens * shape.hidden)
    return kept


def block_backward(setting: Setting, group: Group) -> tuple[int, int]:
    """Return the most bytes inside the block's backward pass, and those of its gradients.

    The gradients are those that it leaves.
    """
    block = group.plan.block
    assert block is not None
    shape, e = setting.shape, setting.element
    tokens, slots = group.tokens, group.tokens * block.top_k
    wide, narrow = up(slots * shape.ffn * e), up(slots * block.width * e)
    pairs = len(group.jobs) * block.experts * block.width
    d_a, d_b = up(pairs * shape.ffn * e), up(pairs * shape.hidden * e)
    if len(group.jobs) > 1 and e != WIDE:  # in fp32, on the way to each job's own
        d_a += up(pairs * shape.ffn * WIDE)
    small = up(slots * WIDE) + 3 * narrow + up(tokens * block.experts * block.width * e) + d_b
    masks = mask_scratch(setting, slots, shape.ffn) + up(slots * WIDE) if group.dropout else 0
    # Adapter-sized gradients stand beside slot-sized activations: for few tokens they are larger
    inside = small + max(wide + masks, d_a)
    most = (3 * wide + 3 * up(slots * shape.hidden * WIDE) if group.dora else 5 * wide) + inside
    left = 2 * up(tokens * shape.ffn * e) + up(tokens * shape.hidden * e)
    return most, left


def layer(setting: Setting, groups: Sequence[Group], *, first: bool) -> Layer:
    """Return the plan of one layer; `first` says that its input needs no gradient."""
    shape, e, width = setting.shape, setting.element, setting.width
    d, f, q, kv = shape.hidden, shape.ffn, shape.q_dim, shape.kv_dim
    hidden, wide = up(width * d * e), up(width * f * e)
    row = up(width * WIDE)
    blocks = [g for g in groups if g.plan.block is not None]
    linear = {t.name: t for t in shape.linears}

    # forward: what is kept
    u = {
        name: update_saved(setting, groups, name) + dora_saved(setting, groups, name, t.n_in, t.n_out)
        for name, t in linear.items()
    }
    has_dora = {name: dora_backward(setting, groups, name, t.n_in, t.n_out) for name, t in linear.items()}
    norm_1 = 0 if first else hidden + row
    x_1 = hidden if any(any_update(groups, n) for n in "qkv") else 0
    lengths = [n for g in groups for job in g.jobs for n in job.lengths]
    heads = up(width * q * e) + 2 * up(width * kv * e)
    projected = 0
    if shape.qk_norm:  # queries and keys before their norms, and one number per head
        projected = up(width * q * e) + up(width * kv * e)
        projected += up(width * shape.heads * WIDE) + up(width * shape.kv_heads * WIDE)
    elif shape.fused_qkv:  # the values are a part of the projection's output, which is kept whole
        projected = up(width * (q + 2 * kv) * e) - up(width * kv * e)
    # what attention gave, and what the FFN gave, before their norms
    after = hidden + row if shape.post_norms else 0
    attended = sum(up(n * q * e) + up(n * shape.heads * WIDE) for n in lengths)
    gathered = up(width * q * e) if any_update(groups, "o") else 0
    norm_2 = hidden + row
    x_2 = hidden if blocks or any_update(groups, "gate") or any_update(groups, "up") else 0
    gates = 0 if all(g.plan.block is not None and g.dora for g in groups) else 2 * wide
    source = not blocks and not routed(groups, "down")
    a = wide if any_update(groups, "down") and (not source or has_dora["down"]) else 0
    block_bytes = sum(block_saved(setting, g) for g in blocks)
    attention = norm_1 + x_1 + u["q"] + u["k"] + u["v"] + heads + projected + attended + gathered + u["o"] + after
    saved = attention + after + norm_2 + x_2 + gates + u["gate"] + u["up"] + u["down"] + a + block_bytes

    # backward, from the layer's output on; `level` is what is alive above the layers below
    points = [saved + norms_forward(setting, groups)]
    level = saved + hidden  # the stream's gradient
    if after:
        points.append(level + 3 * up(width * d * WIDE))
        level += hidden - after  # the gradient of the norm's input is beside it
    down = linear["down"]
    if has_dora["down"]:
        points.append(level + has_dora["down"])
        level += wide  # the gradient of the down-projection's input, from DoRA's jobs
    made = wide if source and any("down" in g.plan.updates and not g.dora for g in groups) else 0
    points.append(
        level + wide + made + update_backward(setting, groups, "down", down.n_in, down.n_out, owned=bool(made))
    )
    level += wide - u["down"]
    if has_dora["down"]:
        points.append(level + wide)
        level -= wide
    points.append(level + router_backward(setting, groups, "down", f))
    level -= a
    if routed(groups, "down"):
        points.append(level + 2 * wide)
    if blocks:
        left = 0
        for group in reversed(blocks):
            most, gradients = block_backward(setting, group)
            points.append(level + left + most)
            left += gradients
            level -= block_saved(setting, group)
        rest = sum(g.tokens for g in groups if g.plan.block is None)
        own = 2 * up(rest * f * e)
        points.append(level + left + own)
        level += left + own - wide  # the gradient of the down-projection's input
        points.append(level + wide)
        level = level - left - own + 2 * wide + hidden
    else:
        level += 2 * wide
        points.append(level)
        level -= wide  # the gradient of the gated product
    level -= gates
    inner = 0
    for name in ("up", "gate"):
        t = linear[name]
        need = update_backward(setting, groups, name, t.n_in, t.n_out, owned=False)
        points.append(level + max(has_dora[name], hidden + need + (hidden if has_dora[name] else 0)))
        level += hidden - wide - u[name] - inner
        if routed(groups, name):
            points.append(level + max(2 * hidden, hidden + router_backward(setting, groups, name, d)))
        inner = hidden
    level -= x_2
    points.append(level + 3 * up(width * d * WIDE))  # the second norm
    level = attention + hidden
    o = linear["o"]
    need = update_backward(setting, groups, "o", o.n_in, o.n_out, owned=False)
    points.append(level + up(width * q * e) + need)
    points.append(level + up(width * q * e) + router_backward(setting, groups, "o", q))
    level += up(width * q * e) - gathered - u["o"]
    points.append(level + heads)
    level += heads - attended
    points.append(level + up(width * max(q, kv) * e) * 3)
    recomputed = hidden + sum(block_slots(g) for g in blocks)
    return Layer(saved=saved, recomputed=recomputed, rise=max(points) - saved)

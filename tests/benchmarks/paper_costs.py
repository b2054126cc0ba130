"""What one dispatched operation would cost a GPU: kernels, bytes, FLOPs, and a roofline's time.

Rates are an H200's (others measured 790 TFLOP/s and 4.3 TB/s on one), rounded down; nothing here
was measured on a GPU. An operation of ours, with a formula of its own, is put into FORMULAS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

GEMM_FLOPS: Final = 750e12
"""bf16 products, per second."""
WIDE_GEMM_FLOPS: Final = 45e12
"""fp32 products, per second."""
ATTENTION_FLOPS: Final = 350e12
MEMORY_BYTES: Final = 4e12
"""Bytes moved per second."""
KERNEL_S: Final = 2e-6
"""Least time of a kernel."""

FREE: Final = frozenset(
    [
        "view",
        "t",
        "transpose",
        "unsqueeze",
        "squeeze",
        "slice",
        "select",
        "expand",
        "split",
        "detach",
        "alias",
        "permute",
        "unbind",
        "split_with_sizes",
        "_unsafe_view",
        "lift_fresh",
        "as_strided",
        "empty",
        "new_empty",
        "empty_like",
        "empty_strided",
        "_reshape_alias",
        "chunk",
        "set_",
        "resize_",
        "new_empty_strided",
        "empty_permuted",
        "unsafe_split",
    ]
)
"""Operations that launch nothing."""
FILLS: Final = frozenset(
    [
        "zeros",
        "zeros_like",
        "new_zeros",
        "fill",
        "zero",
        "full",
        "full_like",
        "ones",
        "arange",
        "new_full",
        "scalar_tensor",
    ]
)
GATHERS: Final = frozenset(("index_select", "embedding", "gather"))
SCATTERS: Final = frozenset(("index_copy", "scatter", "scatter_add"))
PRODUCTS: Final = frozenset(("mm", "addmm", "bmm", "baddbmm"))
LAUNCHES: Final = {"topk": 2, "linalg_vector_norm": 2}
LIST_TENSORS: Final = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
"""Tensors that a multi-tensor kernel takes, by how many lists it reads (torch's own limits)."""
LIST_BLOCKS: Final = 320
LIST_CHUNK: Final = 65_536


@dataclass(slots=True)
class Cost:
    """Kernels, bytes moved and FLOPs; `seconds` is the roofline's time."""

    kernels: int = 0
    moved_bytes: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def __iadd__(self, other: Cost) -> Cost:
        """Add another cost to this one."""
        self.kernels += other.kernels
        self.moved_bytes += other.moved_bytes
        self.flops += other.flops
        self.seconds += other.seconds
        return self

    def __sub__(self, other: Cost) -> Cost:
        """Return what this costs more."""
        return Cost(
            self.kernels - other.kernels,
            self.moved_bytes - other.moved_bytes,
            self.flops - other.flops,
            self.seconds - other.seconds,
        )

    def times(self, count: float) -> Cost:
        """Return the cost of so many of these."""
        return Cost(round(self.kernels * count), self.moved_bytes * count, self.flops * count, self.seconds * count)


def priced(kernels: int, moved_bytes: float, flops: float = 0.0, rate: float = GEMM_FLOPS) -> Cost:
    """Return the cost: a kernel computes, or moves bytes, or is just launched."""
    return Cost(kernels, moved_bytes, flops, max(flops / rate, moved_bytes / MEMORY_BYTES, KERNEL_S * kernels))


Formula = Callable[[tuple[Any, ...], Mapping[str, Any], Any], Cost]
FORMULAS: Final[dict[str, Formula]] = {}
"""Cost of an operation by its name (`loramux::...`), from its arguments and results."""


def tensors_of(values: object) -> list[Tensor]:
    """Return the tensors in any structure."""
    return [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


def size_bytes(tensor: Tensor) -> int:
    """Return the bytes that are read of a tensor: an expanded dimension is read once."""
    count = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return count * tensor.element_size()


def cost_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any, attention_flops: float) -> Cost:
    """Return the cost of a dispatched operation.

    `attention_flops` are those of one forward pass of attention in one layer.
    """
    space, name = func._schema.name.split("::")
    if (formula := FORMULAS.get(func._schema.name)) is not None:
        return formula(args, kwargs, out)
    base = name if name.startswith(("_foreach", "_fused")) else name.rstrip("_")
    if space == "prim" or base in FREE or name in FREE:
        return Cost()
    read, made = tensors_of((args, kwargs)), tensors_of(out)
    if name.startswith("_foreach"):
        return _foreach(name, args)
    if name.startswith("_fused_adamw"):
        count = sum(t.numel() for t in args[0])
        return priced(math.ceil(count / (LIST_CHUNK * LIST_BLOCKS)), count * 4 * 7)
    if "flash_attention" in name or "varlen_attn" in name:
        if "backward" in name:
            moved = sum(map(size_bytes, [*read[:6], *made])) + 12 * read[1].numel()
            return priced(5, moved, 2.5 * attention_flops, ATTENTION_FLOPS)
        return priced(2, sum(map(size_bytes, [*read[:3], made[0]])), attention_flops, ATTENTION_FLOPS)
    moved = _moved(base, name, read, made, kwargs)
    if base in PRODUCTS or base == "_grouped_mm":
        return _product(base, read, made, kwargs, moved)
    kernels = (4 if read[0].dim() > 1 else 8) if base == "sort" else LAUNCHES.get(base, 1)
    return priced(kernels, moved * (2 if base == "sort" else 1))


def _moved(base: str, name: str, read: Sequence[Tensor], made: Sequence[Tensor], kwargs: Mapping[str, Any]) -> float:
    if base in GATHERS:
        index = [t for t in read if t.dtype in (torch.int64, torch.int32)]
        return 2 * sum(map(size_bytes, made)) + sum(map(size_bytes, index))
    if base in SCATTERS:
        source = size_bytes(read[-1])
        return 3 * source if name.endswith("_") else 2 * size_bytes(read[0]) + 2 * source
    if base in FILLS:
        return sum(map(size_bytes, made or read))
    if base == "copy":
        return size_bytes(read[0]) + size_bytes(read[1])
    if base in ("_to_copy", "clone"):
        return size_bytes(read[0]) + size_bytes(made[0])
    if base == "cat":
        return 2 * size_bytes(made[0])
    outs = {
        id(kwargs[key]) for key in ("out", "grad_input", "values", "indices") if isinstance(kwargs.get(key), Tensor)
    }
    reads = {id(t): t for t in read if id(t) not in outs}
    writes = {id(t): t for t in made} | {id(t): t for t in read if id(t) in outs}
    return sum(map(size_bytes, reads.values())) + sum(map(size_bytes, writes.values()))


def _product(
    base: str, read: Sequence[Tensor], made: Sequence[Tensor], kwargs: Mapping[str, Any], moved: float
) -> Cost:
    if base == "_grouped_mm":
        left, right = read[0], read[1]
        return priced(2, moved, 2.0 * left.shape[-2] * left.shape[-1] * right.shape[-1])
    out = kwargs.get("out")
    left, right = [t for t in read if t.dim() >= 2 and t is not out][-2:]
    flops = 2.0 * math.prod(left.shape) * right.shape[-1]
    wide = any(t.dtype == torch.float32 for t in (left, right, *made))
    return priced(1, moved, flops, WIDE_GEMM_FLOPS if wide else GEMM_FLOPS)


def _foreach(name: str, args: tuple[Any, ...]) -> Cost:
    """Return the cost of a multi-tensor kernel: launches as torch packs chunks into them."""
    lists = [a for a in args if isinstance(a, list | tuple) and a and isinstance(a[0], Tensor)]
    most = LIST_TENSORS[min(max(1, len(lists)), 5)]
    launches = tensors = blocks = 0
    for tensor in lists[0]:
        tensors += 1
        for _ in range(math.ceil(tensor.numel() / LIST_CHUNK)):
            blocks += 1
            if blocks == LIST_BLOCKS:
                launches, blocks, tensors = launches + 1, 0, 1
        if tensors >= most:
            launches, blocks, tensors = launches + bool(blocks), 0, 0
    moved = sum(size_bytes(t) for part in lists for t in part)
    if "copy" not in name:
        moved += sum(map(size_bytes, lists[0]))
    return priced(launches + bool(blocks), moved)

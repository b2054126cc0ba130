"""A slab holds a job's trainable parameters in one flat buffer.

It has named views into the buffer and into its gradient. One buffer makes the clip norm one
operation, the optimizer one tensor, and preemption three contiguous copies (parameters and two
moments). Ranks are padded with zero rows and columns to what grouped GEMMs need; padding gets zero
gradients and stays zero under AdamW and SGD.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch import Tensor

ALIGN: Final = 16
"""Elements: every tensor starts on a multiple of this.

So bf16 copies keep the 16-byte alignment that grouped GEMMs want.
"""

Init = Literal["zeros", "ones", "kaiming", "normal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePart:
    """A file part is one tensor of an adapter file and the part of a slab's tensor that it is."""

    name: str
    index: tuple[slice | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor spec describes one tensor of a slab.

    It has the padded shape, the parts that files name, and how those are initialised.
    """

    key: str
    shape: tuple[int, ...]
    parts: tuple[FilePart, ...]
    init: Init
    std: float = 0.02
    """Standard deviation of `normal`."""

    @property
    def size(self) -> int:
        """The number of elements, padding included."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class SlabLayout:
    """A slab layout says where each tensor lies in the flat buffer."""

    specs: tuple[TensorSpec, ...]
    offsets: dict[str, int] = field(init=False)
    shapes: dict[str, tuple[int, ...]] = field(init=False)
    size: int = field(init=False)
    """Elements of the buffer."""

    def __post_init__(self) -> None:
        offsets: dict[str, int] = {}
        at = 0
        for spec in self.specs:
            if spec.key in offsets:
                raise ValueError(f"two tensors are called {spec.key}")
            offsets[spec.key] = at
            at += -(-spec.size // ALIGN) * ALIGN
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "shapes", {spec.key: spec.shape for spec in self.specs})
        object.__setattr__(self, "size", at)

    def view(self, flat: Tensor, key: str) -> Tensor:
        """Return the tensor `key` in a buffer of this layout."""
        start = self.offsets[key]
        shape = self.shapes[key]
        return flat[start : start + math.prod(shape)].view(shape)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return all tensors of a buffer by key."""
        return {key: self.view(flat, key) for key in self.offsets}

    @property
    def n_params(self) -> int:
        """The number of trainable parameters, without padding."""
        return sum(_part_size(spec, part) for spec in self.specs for part in spec.parts)


class Slab:
    """A slab holds the parameters and the gradients of one job.

    `version` counts changes of the parameters.
    """

    def __init__(self, layout: SlabLayout, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        self.layout = layout
        self.params = torch.zeros(layout.size, dtype=dtype, device=device)
        self.grads = torch.zeros(layout.size, dtype=dtype, device=device)
        self.version = 0
        self._params = layout.views(self.params)
        self._grads = layout.views(self.grads)

    def param(self, key: str) -> Tensor:
        """Return the view of a parameter."""
        return self._params[key]

    def grad(self, key: str) -> Tensor:
        """Return the view of a parameter's gradient."""
        return self._grads[key]

    def initialise(self, seed: int, *, generator: torch.Generator | None = None) -> None:
        """Fill in the initial values of every part.

        By default the generator is on the CPU, so they are the same on any device. One that is
        given is used where it is (on a GPU: many times as fast).
        """
        if generator is None:
            generator = torch.Generator().manual_seed(seed % (1 << 63))
        for spec in self.layout.specs:
            target = self._params[spec.key]
            for part in spec.parts:
                view = target[part.index]
                view.copy_(_initial(spec, tuple(view.shape), generator))
        self.version += 1

    def named_parts(self) -> dict[str, Tensor]:
        """Return the tensors of the adapter file: views without padding, by their name there."""
        return {part.name: self._params[s.key][part.index] for s in self.layout.specs for part in s.parts}

    def named_grads(self) -> dict[str, Tensor]:
        """Return the gradients under the names of `named_parts`."""
        return {part.name: self._grads[s.key][part.index] for s in self.layout.specs for part in s.parts}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over the values of an adapter file.

        Raises ValueError, which names the missing or surplus tensor, or the wrong shape.
        """
        mine = self.named_parts()
        missing, surplus = sorted(mine.keys() - tensors.keys()), sorted(tensors.keys() - mine.keys())
        if missing or surplus:
            what = f"missing {missing[0]}" if missing else f"surplus {surplus[0]}"
            more = len(missing) + len(surplus) - 1
            raise ValueError(f"{what}{f' (and {more} more)' if more else ''}")
        for name, view in mine.items():
            if tensors[name].shape != view.shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(view.shape)}")
        for name, view in mine.items():
            view.copy_(tensors[name])
        self.version += 1

    def to(self, device: torch.device | str) -> None:
        """Move both buffers (pause: to the host; resume: back)."""
        if self.params.device != torch.device(device):
            self.params, self.grads = self.params.to(device), self.grads.to(device)
            self._params, self._grads = self.layout.views(self.params), self.layout.views(self.grads)
            self.version += 1


def _part_size(spec: TensorSpec, part: FilePart) -> int:
    return torch.empty(spec.shape, device="meta")[part.index].numel()


def _initial(spec: TensorSpec, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    kinds: dict[str, Any] = {"zeros": torch.zeros, "ones": torch.ones}
    if spec.init in kinds:
        filled: Tensor = kinds[spec.init](tuple(shape), device=generator.device)
        return filled
    value = torch.empty(tuple(shape), device=generator.device)
    if spec.init == "normal":
        return value.normal_(0.0, spec.std, generator=generator)
    bound = 1.0 / math.sqrt(shape[-1])  # kaiming_uniform with a = sqrt(5)
    return value.uniform_(-bound, bound, generator=generator)

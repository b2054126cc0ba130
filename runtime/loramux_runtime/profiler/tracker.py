"""This module counts the bytes of live tensor storages.

They are counted as torch creates and frees them, with real or with fake tensors.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ALLOCATION: Final = 512
"""CUDA's caching allocator hands out multiples of this; counted so on every device."""


class MemoryLimitError(RuntimeError):
    """Says that an allocation would have exceeded the tracker's limit.

    It reads like the CPU allocator's own error.
    """


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts `live` and `peak`: bytes of the storages that operations inside the mode made.

    Only those that still exist are counted. On a build without CUDA this is the only measure there
    is: `torch.cuda.max_memory_allocated()` answers 0. Not counted: the allocator's fragments, the
    CUDA context, workspaces inside library calls.

    `limit_bytes`: the allocation that would exceed it raises MemoryLimitError, as a full device
    would.
    """

    def __init__(self, limit_bytes: float | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self.limit_bytes = limit_bytes
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        if storage in self._known:
            return
        size = -(-storage.nbytes() // ALLOCATION) * ALLOCATION
        if self.limit_bytes is not None and self.live + size > self.limit_bytes:
            raise MemoryLimitError(
                f"DefaultCPUAllocator: can't allocate memory: {size:,} bytes on top of {self.live:,} "
                f"exceed the limit of {int(self.limit_bytes):,}"
            )
        self._known.add(storage)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.live -= size

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Never count the storages of these tensors, which were there before.

        They have to be named because an operation that gives a view shows the storage anew.
        """
        for tensor in tensors:
            self._known.add(tensor.untyped_storage())

    def restart(self) -> None:
        """Forget the peak so far; the new one starts at what is live."""
        self.peak = self.live

"""Bytes of live tensor storages, as torch creates and frees them, with real or with fake tensors."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROUNDING = 512
"""CUDA's caching allocator hands out multiples of this."""


class StorageTracker(TorchDispatchMode):
    """`live` and `peak`: bytes of the storages that operations inside the mode made and that still exist.

    On a build without CUDA this is the only measure there is: `torch.cuda.max_memory_allocated()` answers 0. Not counted:
    the allocator's fragments, the CUDA context, workspaces of library calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
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
        size = -(-storage.nbytes() // ROUNDING) * ROUNDING
        self._known.add(storage)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.live -= size

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.live

"""This module reads what a device says of its memory."""

from __future__ import annotations

import ctypes
import gc
import sys

import torch

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""


def keep_freed_memory() -> bool:
    """Have the C library of this PROCESS keep what is freed, and return whether it does.

    It keeps it for the next step (glibc only). By default every tensor of more than 32 MiB is fresh
    pages that the kernel clears, and the packed rows of many jobs are that large: 1.6% of a CPU
    step. This is for programs of our own (`loramux train` on CPU), not for libraries.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether the error says that torch ran out of memory.

    On CUDA that is a class of its own, on CPU a plain RuntimeError of the allocator.
    """
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


class MemoryMeter:
    """A memory meter reads the memory peak of the device.

    On CPU torch keeps no such figure (`torch.cuda` would answer 0, which is not a measurement), and
    what the process holds is none either: on small jobs most of it is no tensor. So there is no
    figure there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._before = 0
        self._most = 0
        """Most bytes reserved before the step in progress."""

    def peak_bytes(self) -> float | None:
        """Return the most bytes reserved so far, with the context; None where it is not known."""
        if self._device is None:
            return None
        free, total = torch.cuda.mem_get_info(self._device)
        outside = total - free - torch.cuda.memory_reserved(self._device)
        return float(max(self._most, torch.cuda.max_memory_reserved(self._device)) + max(0, outside))

    def step_begins(self) -> None:
        """Begin to measure the peak of the fused step that follows."""
        if self._device is not None:
            self._most = max(self._most, torch.cuda.max_memory_reserved(self._device))
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)

    def step_bytes(self) -> float | None:
        """Return the most bytes allocated since `step_begins` on top of those before.

        None where it is not known.
        """
        if self._device is None:
            return None
        return float(torch.cuda.max_memory_allocated(self._device) - self._before)

    def release(self) -> None:
        """Give cached blocks back after an out-of-memory."""
        gc.collect()
        if self._device is not None:
            torch.cuda.empty_cache()

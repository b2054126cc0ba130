"""What a device says of its memory."""

from __future__ import annotations

import gc

import torch


class MemoryMeter:
    """Peak of a CUDA device; on CPU torch keeps no such figure (`torch.cuda` would answer 0, which is not a
    measurement)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None

    def peak_bytes(self) -> float | None:
        """Most bytes reserved so far, with the context; None where it is not known."""
        if self._device is None:
            return None
        free, total = torch.cuda.mem_get_info(self._device)
        outside = total - free - torch.cuda.memory_reserved(self._device)
        return float(torch.cuda.max_memory_reserved(self._device) + max(0, outside))

    def release(self) -> None:
        """Give cached blocks back after an out-of-memory."""
        gc.collect()
        if self._device is not None:
            torch.cuda.empty_cache()

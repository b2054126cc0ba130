"""Times and peaks on a device."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def clear(device: torch.device) -> None:
    """Forget cached memory and peaks."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def timed(work: Callable[[], object], device: torch.device, *, repeats: int = 5, warmup: int = 2) -> dict[str, Any]:
    """Time `work` by device events (CPU: the monotonic clock): median, all samples, peak memory."""
    for _ in range(warmup):
        work()
    seconds: list[float] = []
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(repeats):
        if device.type == "cuda":
            make: Any = torch.cuda.Event
            begin, end = make(enable_timing=True), make(enable_timing=True)
            begin.record()
            work()
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
    facts: dict[str, Any] = {"median_s": statistics.median(seconds), "samples_s": seconds}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        facts |= {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(device),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
            "device_used_bytes": total - free,
        }
    return facts

"""How long moving things takes: a new job's adapter, one from its file, a pause and a resume, the base's weights."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from loramux_profiles.regression import relative_nnls
from loramux_profiles.step_point import AdapterPoint
from loramux_runtime.adapter import Adapter
from loramux_runtime.adapter_files import load_adapter, save_adapter
from loramux_runtime.jobs_file import OptimizerConfig, ScheduleConfig
from loramux_runtime.model import FusedModel
from loramux_runtime.optim import JobOptimizer
from loramux_runtime.profiler.step import adapter_config

SIZES: Final = (
    AdapterPoint(method="lora", rank=8, targets="qv"),
    AdapterPoint(method="lora", rank=32),
    AdapterPoint(method="mixlora", rank=16, experts=8, top_k=2),
    AdapterPoint(method="dynmole", rank=32, experts=8, top_k=2),
)
"""Small to large: what a job keeps differs by a factor of about 100."""
REPEATS: Final = 5
BASE_SAMPLE: Final = 256 << 20
"""Bytes of weights that are written and read again; the rest goes at the same rate."""


def measure_transfers(model: FusedModel) -> dict[str, Any]:
    """The `transfers` section of a record: wall-clock seconds, fixed and per byte of state (parameters, gradients and
    moments), for each kind."""
    adapters = [model.new_adapter(f"t{i}", one.method, adapter_config(one)) for i, one in enumerate(SIZES)]
    pairs = [(adapter, _optimizer(adapter)) for adapter in adapters]
    sizes = [_state_bytes(*pair) for pair in pairs]
    with tempfile.TemporaryDirectory(prefix="loramux-profile-") as name:
        folders = [Path(name) / adapter.job_id for adapter in adapters]
        for adapter, folder in zip(adapters, folders, strict=True):
            save_adapter(adapter, folder, model.base.name)
        found = {
            "join": _line(sizes, [_joining(model, point) for point in SIZES], model),
            "adapter_load": _line(sizes, [_loading(model, folder) for folder in folders], model),
            "pause": _line(sizes, [_copying(model, *pair, out=True) for pair in pairs], model),
            "resume": _line(sizes, [_copying(model, *pair, out=False) for pair in pairs], model),
        }
        base_s = _base_seconds(model, Path(name) / "base.safetensors")
    return {**found, "base_load_s": base_s, "base_bytes": model.base.weight_bytes}


def _optimizer(adapter: Adapter) -> JobOptimizer:
    optimizer = JobOptimizer(adapter.slab, OptimizerConfig(), ScheduleConfig(), 100)
    optimizer.step(0)  # makes the moments
    return optimizer


def _state(adapter: Adapter, optimizer: JobOptimizer) -> list[torch.Tensor]:
    moments = [tensor for tensor in optimizer.state().values() if tensor.dim() > 0]
    return [adapter.slab.params, adapter.slab.grads, *moments]


def _state_bytes(adapter: Adapter, optimizer: JobOptimizer) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _state(adapter, optimizer))


def _joining(model: FusedModel, point: AdapterPoint) -> Callable[[], object]:
    return lambda: _optimizer(model.new_adapter("new", point.method, adapter_config(point)))


def _loading(model: FusedModel, folder: Path) -> Callable[[], object]:
    return lambda: load_adapter(model, folder, "loaded")


def _copying(model: FusedModel, adapter: Adapter, optimizer: JobOptimizer, *, out: bool) -> Callable[[], object]:
    """What a pause copies; on a CPU the runtime copies nothing, and the figure is that of a copy in main memory."""
    tensors = _state(adapter, optimizer)
    if not out:
        tensors = [tensor.cpu() for tensor in tensors]
    target = "cpu" if out else model.base.device
    return lambda: [tensor.to(target, copy=True) for tensor in tensors]


def _line(sizes: Sequence[int], actions: Sequence[Callable[[], object]], model: FusedModel) -> dict[str, Any]:
    samples = [[_seconds(action, model) for _ in range(REPEATS + 1)][1:] for action in actions]
    medians = np.asarray([float(np.median(each)) for each in samples])
    byte_s, fixed_s = relative_nnls(np.asarray([(float(size), 1.0) for size in sizes]), medians)
    return {"fixed_s": float(fixed_s), "byte_s": float(byte_s), "sizes": list(sizes), "samples": samples}


def _seconds(action: Callable[[], object], model: FusedModel) -> float:
    cuda = model.base.device.type == "cuda"
    start = time.perf_counter()
    kept = action()
    if cuda:
        torch.cuda.synchronize(model.base.device)
    passed = time.perf_counter() - start
    del kept
    return max(passed, 1e-9)


def _base_seconds(model: FusedModel, path: Path) -> float:
    """Seconds to read the base's weights from a file (in the page cache) to the device."""
    chosen: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in model.base.hf.state_dict().items():
        if size < BASE_SAMPLE:
            chosen[name] = tensor.detach().clone().contiguous()  # tied weights share storage, which the format refuses
            size += tensor.numel() * tensor.element_size()
    save_file(chosen, path)
    chosen.clear()
    device = model.base.device

    def read() -> object:
        return [tensor.to(device, copy=True) for tensor in load_file(path).values()]

    best = float(np.median([_seconds(read, model) for _ in range(3)]))
    return best * model.base.weight_bytes / size

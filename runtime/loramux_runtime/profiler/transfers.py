"""This module measures how long moving things takes.

It times a new job's adapter, one from its file, a pause and a resume, and the base's weights.
Measuring needs torch and numpy only: the GPU suite runs where there is neither pydantic nor SciPy.
The lines are fitted where there is SciPy.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from loramux_profiles.step_point import AdapterPoint
from loramux_runtime.fused.adapters.base import Adapter
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.jobs.adapter_files import load_adapter, save_adapter
from loramux_runtime.profiler.step import adapter_config

SIZES: Final = (
    AdapterPoint(method="lora", rank=8, targets="qv"),
    AdapterPoint(method="lora", rank=32),
    AdapterPoint(method="mixlora", rank=16, experts=8, top_k=2),
    AdapterPoint(method="dynmole", rank=32, experts=8, top_k=2),
)
"""Adapters from small to large: what a job keeps differs by a factor of about 100."""
KINDS: Final = ("join", "adapter_load", "pause", "resume")
REPEATS: Final = 5
BASE_SAMPLE: Final = 256 << 20
"""Bytes of weights that are written and read again; the rest goes at the same rate."""


def measure_transfers(model: FusedModel) -> dict[str, Any]:
    """Return the `transfers` section of a record."""
    return fit_transfers(sample_transfers(model))


def fit_transfers(samples: dict[str, Any]) -> dict[str, Any]:
    """Return the section from what `sample_transfers` gave.

    It has the seconds of each kind, fixed and per byte of state.
    """
    from loramux_profiles.regression import relative_nnls

    section = dict(samples)
    for kind in KINDS:
        line = samples[kind]
        medians = np.asarray([float(np.median(each)) for each in line["samples"]])
        byte_s, fixed_s = relative_nnls(np.asarray([(float(size), 1.0) for size in line["sizes"]]), medians)
        section[kind] = {"fixed_s": float(fixed_s), "byte_s": float(byte_s), **line}
    return section


def sample_transfers(
    model: FusedModel, points: Sequence[AdapterPoint] = SIZES, repeats: int = REPEATS
) -> dict[str, Any]:
    """Return wall-clock seconds of each kind by bytes of state, and those of the base.

    State is parameters, gradients and moments.
    """
    adapters = [model.new_adapter(f"t{i}", one.method, adapter_config(one)) for i, one in enumerate(points)]
    pairs = [(adapter, _optimizer(adapter)) for adapter in adapters]
    sizes = [_state_bytes(*pair) for pair in pairs]
    with tempfile.TemporaryDirectory(prefix="loramux-profile-") as name:
        folders = [Path(name) / adapter.job_id for adapter in adapters]
        for adapter, folder in zip(adapters, folders, strict=True):
            save_adapter(adapter, folder, model.base.name)
        found = {
            "join": _samples(sizes, [_joining(model, point) for point in points], model, repeats),
            "adapter_load": _samples(sizes, [_loading(model, folder) for folder in folders], model, repeats),
            "pause": _samples(sizes, [_copying(model, *pair, out=True) for pair in pairs], model, repeats),
            "resume": _samples(sizes, [_copying(model, *pair, out=False) for pair in pairs], model, repeats),
        }
        base_s = _base_seconds(model, Path(name) / "base.safetensors")
    return {**found, "base_load_s": base_s, "base_bytes": model.base.weight_bytes}


def _optimizer(adapter: Adapter) -> torch.optim.AdamW:
    """Make an optimizer like a job's own: one parameter, two flat moments.

    A job's own is `JobOptimizer`, whose configuration needs pydantic.
    """
    param = torch.nn.Parameter(adapter.slab.params)
    param.grad = adapter.slab.grads
    optimizer = torch.optim.AdamW([param], lr=1e-4, fused=True)
    optimizer.step()  # makes the moments
    return optimizer


def _state(adapter: Adapter, optimizer: torch.optim.AdamW) -> list[torch.Tensor]:
    kept = [value for state in optimizer.state.values() for value in state.values()]
    moments = [value for value in kept if isinstance(value, torch.Tensor) and value.dim() > 0]
    return [adapter.slab.params, adapter.slab.grads, *moments]


def _state_bytes(adapter: Adapter, optimizer: torch.optim.AdamW) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _state(adapter, optimizer))


def _joining(model: FusedModel, point: AdapterPoint) -> Callable[[], object]:
    return lambda: _optimizer(model.new_adapter("new", point.method, adapter_config(point)))


def _loading(model: FusedModel, folder: Path) -> Callable[[], object]:
    return lambda: load_adapter(model, folder, "loaded")


def _copying(model: FusedModel, adapter: Adapter, optimizer: torch.optim.AdamW, *, out: bool) -> Callable[[], object]:
    """Return an action that copies what a pause copies, or without `out` what a resume copies.

    On a CPU the runtime copies nothing, and the figure is that of a copy in main memory.
    """
    tensors = _state(adapter, optimizer)
    if not out:
        tensors = [tensor.cpu() for tensor in tensors]
    target = "cpu" if out else model.base.device
    return lambda: [tensor.to(target, copy=True) for tensor in tensors]


def _samples(
    sizes: Sequence[int], actions: Sequence[Callable[[], object]], model: FusedModel, repeats: int
) -> dict[str, Any]:
    samples = [[_seconds(action, model) for _ in range(repeats + 1)][1:] for action in actions]
    return {"sizes": list(sizes), "samples": samples}


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
    """Return the seconds to read the base's weights from a file to the device.

    The file is in the page cache.
    """
    chosen: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in model.base.hf.state_dict().items():
        if size < BASE_SAMPLE:
            # tied weights share storage, which the format refuses
            chosen[name] = tensor.detach().clone().contiguous()
            size += tensor.numel() * tensor.element_size()
    save_file(chosen, path)
    chosen.clear()
    device = model.base.device

    def read() -> object:
        return [tensor.to(device, copy=True) for tensor in load_file(path).values()]

    best = float(np.median([_seconds(read, model) for _ in range(3)]))
    return best * model.base.weight_bytes / size

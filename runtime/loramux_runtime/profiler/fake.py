"""This module gives the peak of a fused step without the device, and without the memory.

It runs the real step on fake tensors, which have shapes, types and storages but no data, so that a
13B model fits anywhere. The step runs as on CUDA (one product for all jobs, groups of jobs, masks
in large blocks), or with `exact` as on a CPU. Attention runs by sequences, and its tracked bytes
are those of the CPU kernels.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from loramux_profiles.step_point import StepPoint
from loramux_runtime.fused.base_model import BaseModel, FrozenDtype, build_base
from loramux_runtime.fused.kernels import dropout
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.slab import Slab
from loramux_runtime.profiler.step import Peak, PointStep
from loramux_runtime.profiler.tracker import StorageTracker


def _grouped_mm(a: torch.Tensor, b: torch.Tensor, *, offs: torch.Tensor) -> torch.Tensor:
    """Stand in for `F.grouped_mm` on fake tensors, where torch's own takes bf16 only.

    It gives the result of `F.grouped_mm`, with rows padded to 16 bytes. It is called inside our
    autograd functions, which keep what the backward pass needs themselves.
    """
    size = [*(offs.shape if a.dim() == b.dim() == 2 else ()), a.shape[-2], b.shape[-1]]
    step = max(1, 16 // a.element_size())
    row = -(-size[-1] // step) * step
    stride = [size[-2] * row, row, 1][-len(size) :]
    return torch.empty_strided(size, stride, dtype=a.dtype, device=a.device)


@contextmanager
def _fakes(mode: FakeTensorMode, tracker: StorageTracker, exact: bool, keys: Any) -> Iterator[None]:
    # Module.to swaps parameters in place, which fake tensors refuse; the model is made where it
    # belongs. The fake device is called "cpu", where masks are made in blocks that fit a cache.
    # That is right for exact mode, which is the CPU's
    stay = patch("transformers.PreTrainedModel.to", lambda model, *_: model)
    blocks = patch.object(dropout, "_BLOCK", dropout._BLOCK if exact else dropout._BLOCK_DEVICE)
    own_keys = patch.object(dropout, "_channel_keys", keys)
    products = patch("torch.nn.functional.grouped_mm", _grouped_mm)
    # Values are nobody's, and drawing none of them saves a seventh of four 7B jobs' time
    values = patch.object(Slab, "initialise", lambda *_, **__: None)
    with mode, tracker, stay, blocks, own_keys, products, values:
        yield


class FakeStep:
    """Gives the peaks of steps of one base of a transformers configuration, on fake tensors.

    Building a 7B base takes seconds.
    """

    def __init__(self, config: Any, *, dtype: FrozenDtype = "bf16", exact: bool = False) -> None:
        self._tracker = StorageTracker()
        self._exact = exact
        # Fake tensors must not get into the cache that real steps of this process use
        self._keys = lru_cache(maxsize=64)(dropout._channel_keys.__wrapped__)
        # One mode for all steps: a tensor of another mode is taken for a new one, storage and all
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with _fakes(self._mode, self._tracker, exact, self._keys):
            self._base: BaseModel = build_base(config, dtype=dtype)
            self._model = FusedModel(self._base, exact=exact)
        self._tracker.ignore([*self._base.hf.parameters(), *self._base.hf.buffers()])
        self.weight_bytes = self._base.weight_bytes

    def peak(self, point: StepPoint) -> Peak:
        """Return the peak of one step and its optimizers."""
        self._keys.cache_clear()  # each step answers as if it were the first
        gc.collect()
        tracker = self._tracker
        before = tracker.live
        with _fakes(self._mode, tracker, self._exact, self._keys):
            step = PointStep(self._model, point)
        state = tracker.live - before
        tracker.restart()
        with _fakes(self._mode, tracker, self._exact, self._keys):
            step.forward_backward()
            step.optimize()
        return Peak(weights=self.weight_bytes, state=state, dynamic=tracker.peak - before - state)

"""The peak of a fused step without the device, and without the memory: the real step on fake tensors.

Fake tensors have shapes, types and storages but no data, so that a 13B model fits anywhere. The step runs as on CUDA
(one product for all jobs, groups of jobs, masks in large blocks); attention by sequences, whose tracked bytes are those
of the CPU kernels.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch._subclasses.fake_tensor import FakeTensorMode

from loramux_profiles.step_point import StepPoint
from loramux_runtime.base_model import BaseModel, FrozenDtype, build_base
from loramux_runtime.kernels import dropout
from loramux_runtime.model import FusedModel
from loramux_runtime.profiler.step import Peak, PointStep
from loramux_runtime.profiler.tracker import StorageTracker


@contextmanager
def _fakes(mode: FakeTensorMode, tracker: StorageTracker) -> Iterator[None]:
    # Module.to swaps parameters in place, which fake tensors refuse; the model is made where it belongs. The fake
    # device is called "cpu", where masks are made in blocks that fit a cache
    stay = patch("transformers.PreTrainedModel.to", lambda model, *_: model)
    blocks = patch.object(dropout, "_BLOCK", dropout._BLOCK_DEVICE)
    with mode, tracker, stay, blocks:
        yield


class FakeStep:
    """Peaks of steps of one base of a transformers configuration, on fake tensors. Building a 7B base takes seconds."""

    def __init__(self, config: Any, *, dtype: FrozenDtype = "bf16", exact: bool = False) -> None:
        self._tracker = StorageTracker()
        # One for all: a tensor of another mode is taken for a new one, storage and all
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with _fakes(self._mode, self._tracker):
            self._base: BaseModel = build_base(config, dtype=dtype)
            self._model = FusedModel(self._base, exact=exact)
        self._tracker.ignore([*self._base.hf.parameters(), *self._base.hf.buffers()])
        self.weight_bytes = self._base.weight_bytes

    def peak(self, point: StepPoint) -> Peak:
        """Of one step and its optimizers."""
        gc.collect()
        tracker = self._tracker
        before = tracker.live
        with _fakes(self._mode, tracker):
            step = PointStep(self._model, point)
        state = tracker.live - before
        tracker.restart()
        with _fakes(self._mode, tracker):
            step.forward_backward()
            step.optimize()
        return Peak(weights=self.weight_bytes, state=state, dynamic=tracker.peak - before - state)

"""This module runs torch's optimizers and schedules on a job's flat buffer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from loramux_runtime.fused.slab import Slab
from loramux_runtime.jobs.jobs_file import OptimizerConfig, ScheduleConfig


class JobOptimizer:
    """Each job has one optimizer, whose single parameter is the job's slab.

    So the moments are two flat buffers.
    """

    def __init__(self, slab: Slab, config: OptimizerConfig, schedule: ScheduleConfig, total_steps: int) -> None:
        self._slab = slab
        self._config, self._schedule, self._total = config, schedule, total_steps
        self._param = torch.nn.Parameter(slab.params, requires_grad=True)
        self._bind()
        if config.name == "adamw":
            self._torch: torch.optim.Optimizer = torch.optim.AdamW(
                [self._param],
                lr=config.lr,
                betas=config.betas,
                eps=config.eps,
                weight_decay=config.weight_decay,
                # One pass takes a quarter of the time on CPU, and makes no temporaries as large as
                # the adapter
                fused=True,
            )
        else:
            self._torch = torch.optim.SGD(
                [self._param], lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
            )

    def _bind(self) -> None:
        self._param.data = self._slab.params
        self._param.grad = self._slab.grads

    def lr(self, step: int) -> float:
        """Return the learning rate of an optimizer step, counted from 0."""
        schedule, peak = self._schedule, self._config.lr
        if step < schedule.warmup_steps:
            return peak * (step + 1) / schedule.warmup_steps
        if schedule.name == "constant":
            return peak
        left = max(1, self._total - schedule.warmup_steps)
        done = min(1.0, (step - schedule.warmup_steps) / left)
        return peak * (1.0 - done if schedule.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done)))

    def grad_norm(self) -> float:
        """Return the Euclidean norm of the accumulated gradient."""
        return float(torch.linalg.vector_norm(self._slab.grads))

    def step(self, step: int, scale: float = 1.0) -> None:
        """Apply the accumulated gradient times `scale` and clear it."""
        if scale != 1.0:
            self._slab.grads.mul_(scale)
        for group in self._torch.param_groups:
            group["lr"] = self.lr(step)
        self._torch.step()
        self._slab.version += 1
        self._slab.grads.zero_()

    def to(self, device: torch.device | str) -> None:
        """Move parameters, gradient and moments (pause: to the host; resume: back)."""
        self._slab.to(device)
        self._bind()
        for name, value in self._torch.state[self._param].items():
            if isinstance(value, Tensor):
                self._torch.state[self._param][name] = value.to(device)

    def state(self) -> dict[str, Any]:
        """Return the moments and the step count as tensors by name."""
        return {name: value for name, value in self._torch.state[self._param].items() if isinstance(value, Tensor)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over the tensors that `state` gave.

        They are copied, because a step changes moments in place.
        """
        device = self._slab.params.device
        self._torch.state[self._param] = {name: value.to(device, copy=True) for name, value in tensors.items()}

"""The fused step runs the frozen base once for the micro-batches of many jobs.

It is one forward and one backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loramux_runtime.fused.adapted import AdaptedLinear, AdaptedMlp, StepLayer
from loramux_runtime.fused.adapters.base import Adapter
from loramux_runtime.fused.adapters.methods import METHODS
from loramux_runtime.fused.base_model import BaseModel
from loramux_runtime.fused.context import StepContext, running_step
from loramux_runtime.fused.kernels.loss import CHUNK_ROWS, chunked_cross_entropy
from loramux_runtime.fused.kernels.norm import freeze_norms
from loramux_runtime.fused.kernels.score import predicted
from loramux_runtime.fused.packing import MicroBatch, Part, StepLayout, build_layout
from loramux_runtime.fused.rope import turn_by_sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """An outcome is what one job's micro-batch gave."""

    job_id: str
    loss: float
    """Cross entropy, its share of the accumulation window.

    A whole window's micro-batches add up to the mean.
    """
    aux_loss: float
    """Auxiliary losses of its routers, weighted by the micro-batch's share of the window."""
    n_tokens: int
    active_experts: float | None = None
    """Mean experts kept per token, where the method's routing varies (DynMoLE)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A score is what the held-out rows of one job gave."""

    loss: float
    """Cross entropy over `batch.window_labels`."""
    labels: int
    right: int
    """Labels that were the model's likeliest token."""
    rows_right: int
    """Rows all of whose labels were the likeliest token.

    Greedy decoding would have answered them exactly.
    """


class FusedModel:
    """A fused model is a frozen base whose linears carry the adapters of the jobs in the step.

    `exact`: every frozen GEMM, router and loss chunk runs on one job's rows only, so that on CPU in
    fp32 a job's bits do not depend on its peers (default on CPU; costs 5 to 8%). `recompute`: keep
    only layer inputs, and run each layer's forward pass again in the backward pass.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        exact: bool | None = None,
        recompute: bool = False,
        loss_chunk: int = CHUNK_ROWS,
    ) -> None:
        self.base = base
        self.exact = base.device.type == "cpu" if exact is None else exact
        self.loss_chunk = loss_chunk
        self._layers = _adapt(base)
        self.recompute = recompute

    @property
    def recompute(self) -> bool:
        """Whether layers are recomputed in the backward pass; may be changed between steps."""
        return any(layer.recompute for layer in self._layers)

    @recompute.setter
    def recompute(self, value: bool) -> None:
        for layer in self._layers:
            layer.recompute = value

    def new_adapter(
        self,
        job_id: str,
        method: str,
        config: Any,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Adapter:
        """Return a freshly initialised adapter for this base.

        `device` None: on the base's device. `generator`: of the initial values, instead of one on
        the CPU from `seed`. Raises ValueError where the configuration does not fit.
        """
        master = torch.float64 if self.base.dtype == torch.float64 else torch.float32
        adapter = Adapter(
            job_id,
            METHODS[method],
            config,
            self.base.sites,
            seed=seed,
            device=device or self.base.device,
            dtype=master,
            generator=generator,
        )
        with torch.no_grad():
            adapter.method.finish_initialisation(adapter, self.base.weight)
        return adapter

    def layout(self, parts: Sequence[Part], *, training: bool = True) -> StepLayout:
        """Pack the micro-batches into one step."""
        return build_layout(
            parts, device=self.base.device, compute_dtype=self.base.dtype, exact=self.exact, training=training
        )

    def step(self, parts: Sequence[Part]) -> list[JobOutcome]:
        """Run one fused forward and backward pass, and return outcomes in the order of `parts`.

        Gradients are added to each adapter's slab.
        """
        layout = self.layout(parts)
        return self._outcomes(parts, layout, *self.forward_backward(layout))

    def forward_backward(self, layout: StepLayout) -> tuple[Tensor, list[Tensor | None], StepContext]:
        """Run the device's part of a step, without waiting for it.

        Return the losses [jobs], the auxiliary losses by group, and the context with the
        statistics.
        """
        with running_step(layout) as context:
            losses, aux = self._losses(layout, context)
            total = losses.sum() + sum(a.sum() for a in aux if a is not None)
            torch.autograd.backward(total)
        return losses, aux, context

    @torch.no_grad()
    def score(self, adapter: Adapter, batch: MicroBatch) -> Score:
        """Score one job's rows without gradients and without dropout."""
        layout = self.layout([Part(adapter=adapter, batch=batch)], training=False)
        with running_step(layout):
            hidden = self._hidden(layout)
            head = self.base.hf.get_output_embeddings()
            losses = chunked_cross_entropy(hidden, head.weight, head.bias, layout.loss, chunk=self.loss_chunk)
            right = predicted(hidden, head.weight, head.bias, layout.loss).cpu().numpy()
        ends = np.asarray([end for _, end in layout.sequences])
        row_of = np.searchsorted(ends, layout.loss.index.cpu().numpy(), side="right")
        wrong = np.bincount(row_of[~right], minlength=len(ends))
        return Score(
            loss=float(losses[0]), labels=len(right), right=int(right.sum()), rows_right=int((wrong == 0).sum())
        )

    @torch.no_grad()
    def logits(self, parts: Sequence[Part]) -> list[list[Tensor]]:
        """Return the logits [tokens, vocab] of every row, by part, with dropout off."""
        layout = self.layout(parts, training=False)
        with running_step(layout):
            hidden = self._hidden(layout)
        rows = iter(layout.sequences)
        found = {
            part.adapter.job_id: [self._head(hidden[a:b]) for a, b in (next(rows) for _ in part.batch.tokens)]
            for part in layout.parts
        }
        return [found[part.adapter.job_id] for part in parts]

    def _hidden(self, layout: StepLayout) -> Tensor:
        out = self.base.hf.model(input_ids=layout.input_ids, position_ids=layout.positions, use_cache=False)
        hidden: Tensor = out.last_hidden_state.squeeze(0)
        return hidden

    def _head(self, hidden: Tensor) -> Tensor:
        head = self.base.hf.get_output_embeddings()
        result: Tensor = nn.functional.linear(hidden, head.weight, head.bias)
        return result

    def _losses(self, layout: StepLayout, context: StepContext) -> tuple[Tensor, list[Tensor | None]]:
        hidden = self._hidden(layout)
        head = self.base.hf.get_output_embeddings()
        losses = chunked_cross_entropy(hidden, head.weight, head.bias, layout.loss, chunk=self.loss_chunk)
        aux: list[Tensor | None] = []
        for group in layout.groups:
            value = group.method.auxiliary(group, context.stats)
            if value is not None:
                value = value * group.put(group.shares, value.dtype)
            aux.append(value)
        return losses, aux

    def _outcomes(
        self,
        parts: Sequence[Part],
        layout: StepLayout,
        losses: Tensor,
        aux: list[Tensor | None],
        context: StepContext,
    ) -> list[JobOutcome]:
        values = losses.detach().tolist()
        extra: dict[str, float] = {}
        active: dict[str, float] = {}
        for group, value in zip(layout.groups, aux, strict=True):
            ids = [adapter.job_id for adapter in group.adapters]
            if value is not None:
                extra.update(zip(ids, value.detach().tolist(), strict=True))
            kept = group.method.active_experts(group, context.stats)
            if kept is not None:
                active.update(zip(ids, kept.tolist(), strict=True))
        found = {
            part.adapter.job_id: JobOutcome(
                job_id=part.adapter.job_id,
                loss=loss,
                aux_loss=extra.get(part.adapter.job_id, 0.0),
                n_tokens=part.batch.n_tokens,
                active_experts=active.get(part.adapter.job_id),
            )
            for part, loss in zip(layout.parts, values, strict=True)
        }
        return [found[part.adapter.job_id] for part in parts]


def _adapt(base: BaseModel) -> list[StepLayer]:
    """Put our modules in the place of the decoder's, once per model."""
    layers = base.hf.model.layers
    if isinstance(layers[0], StepLayer):
        return list(layers)
    for index, layer in enumerate(layers):
        attention = layer.self_attn
        for site in base.sites.sites:
            if site.block == "self_attn":
                setattr(attention, site.name, AdaptedLinear(getattr(attention, site.name), index, site.name))
        layer.mlp = AdaptedMlp(layer.mlp, index, base.act)
        layers[index] = StepLayer(layer)
    freeze_norms(base.hf.model)
    turn_by_sequence(base.hf.model)
    return list(layers)

"""This RMSNorm with a frozen weight keeps little memory for the backward pass.

It keeps its input in its own dtype and one number per row. Hugging Face's keeps an fp32 copy of the
input (16 of about 163 KiB per token and layer for a bf16 LLaMA-7B, two norms a layer, beside the
input itself) and makes twice as many passes. Forward values are the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, inverse, weight)
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *outs: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        grad = (outs[0] * weight).to(inverse.dtype)
        unit = x.to(inverse.dtype) * inverse
        along = (grad * unit).mean(-1, keepdim=True)
        return grad.sub_(unit.mul_(along)).mul_(inverse).to(x.dtype), None, None


class FrozenRmsNorm(nn.Module):
    """This norm stands in the place of a llama-style norm: weight * (x / rms(x))."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the normalised hidden states: [..., n] -> [..., n]."""
        result: Tensor = _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
        return result


def freeze_norms(model: nn.Module) -> None:
    """Replace the llama-style norms of a Hugging Face decoder.

    Gemma's (1 + weight, in fp32) stay as they are.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            norm: Any = child
            if type(child).__name__.endswith("RMSNorm") and hasattr(child, "variance_epsilon"):
                setattr(module, name, FrozenRmsNorm(norm.weight.detach(), norm.variance_epsilon))

"""Rotary positions of a packed step: every sequence is turned as it would be by itself.

Two types look at how long the text is: `dynamic` (its frequencies go by the length) and `longrope`
(one set for short texts, one for long ones). Hugging Face's modules take the longest position of
the whole batch for that, and keep it for the next batch. In a packed step that is some other job's
row. Here the length is that of each row: its cosines and sines are those that transformers gives
for a batch of this one row in a model that has seen no other. Neither the rows of the same
micro-batch, nor peers, nor earlier steps change them. The other types go by the position alone and
keep Hugging Face's module.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from loramux_runtime.fused.context import current_step
from loramux_runtime.fused.rope_fields import Fault

BY_POSITION: Final = ("default", "linear", "yarn", "llama3", "proportional")
"""Types whose angles depend on nothing but the position."""
BY_LENGTH: Final = ("dynamic", "longrope")
_PARTLY_TURNED: Final = ("glm", "glm4", "phi3")
"""Families whose code turns the first numbers of a head and leaves the rest."""


def rope_type(config: Any) -> str:
    """Return the kind of rotary positions of a transformers configuration."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return str(parameters.get("rope_type") or parameters.get("type") or "default")


def longest_position(config: Any) -> int | None:
    """Return how many positions a base was made for, or None where its configuration is silent.

    `linear`, `dynamic` and `yarn` stretch what the base was trained on by their factor; the other
    types have the stretched length in `max_position_embeddings`.
    """
    most = getattr(config, "max_position_embeddings", None)
    if most is None:
        return None
    parameters = getattr(config, "rope_parameters", None) or {}
    kind = rope_type(config)
    factor = parameters.get("factor") or 1.0
    if kind in ("linear", "dynamic"):
        return int(most * factor)
    if kind == "yarn":
        return max(int(most), int((parameters.get("original_max_position_embeddings") or most) * factor))
    return int(most)


def rope_faults(config: Any) -> list[Fault]:
    """Return what is wrong with rotary positions whose fields `rope_fields` has looked over."""
    kind = rope_type(config)
    parameters = getattr(config, "rope_parameters", None) or {}
    where = "rope_parameters"
    part = parameters.get("partial_rotary_factor")
    if part is not None and not 0 < part <= 1:
        return [(f"{where}.partial_rotary_factor", part, "must be above 0 and at most 1")]
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    try:
        width = _width(config, kind, int(size * (part or 1.0)))
    except Exception as error:
        return [(where, "", f"transformers cannot use it ({type(error).__name__}: {str(error)[:150]})")]
    if width is None:
        return [(where, "", "gives frequencies that are no finite numbers")]
    if width > size or (width < size and config.model_type not in _PARTLY_TURNED):
        return [(where, "", f"turns {width} of the {size} numbers of a head, which this family cannot")]
    return []


def _width(config: Any, kind: str, plain: int) -> int | None:
    """Return how many numbers of a head are turned; None where a frequency is not finite."""
    if kind == "default":
        return 2 * ((plain + 1) // 2)
    widths = set()
    lengths = [None] if kind in BY_POSITION else [None, 1 << 20, 1 << 40]
    for length in lengths:
        seq_len = None if length is None else torch.tensor(length)
        made, scaling = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=seq_len)
        if not (torch.isfinite(made).all() and 0 < float(scaling) < float("inf")):
            return None
        widths.add(2 * made.shape[-1])
    return max(widths)


class SequenceRope(nn.Module):
    """This stands in the place of Hugging Face's rotary module where the type goes by the length.

    It keeps nothing between calls.
    """

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self.config: Any = rotary.config
        self.kind = rope_type(rotary.config)
        self.scaling = float(rotary.attention_scaling)
        self.inv_freq: Tensor
        self.register_buffer("inv_freq", rotary.original_inv_freq, persistent=False)
        if self.kind == "dynamic":
            self.short = int(rotary.original_max_seq_len)
        else:
            self.short = int(self.config.rope_parameters["original_max_position_embeddings"])

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of a packed step in the dtype of x.

        Both are [1, T, rotary width].
        """
        frequencies = self._frequencies([b - a for a, b in current_step().layout.sequences], position_ids)
        angles = position_ids.unsqueeze(-1).float() * frequencies
        both = torch.cat((angles, angles), dim=-1)
        cos, sin = both.cos() * self.scaling, both.sin() * self.scaling
        return cos.to(x.dtype), sin.to(x.dtype)

    def _frequencies(self, lengths: list[int], positions: Tensor) -> Tensor:
        """Return [n] where all rows have the same frequencies, else [T, n]."""
        # A length that changes nothing is called by the first length that does not
        keys = [self._key(length) for length in lengths]
        kinds = sorted(set(keys))
        short = self.inv_freq.float()
        if kinds == [0]:
            return short
        # On the host, so that nothing waits for the device
        made = [self._stretched(key) for key in kinds if key]
        table = torch.stack(made).to(positions.device, non_blocking=True)
        if kinds[0] == 0:
            table = torch.cat((short.unsqueeze(0), table))
        if len(kinds) == 1:
            return table[0]
        rows = np.repeat(np.searchsorted(kinds, keys), lengths)
        rows = np.concatenate((rows, np.zeros(positions.shape[1] - len(rows), dtype=rows.dtype)))
        return table[torch.from_numpy(rows).to(positions.device, non_blocking=True)]

    def _key(self, length: int) -> int:
        """Return 0 for short rows, and for others a length that has the same frequencies."""
        if length <= self.short:
            return 0
        return length if self.kind == "dynamic" else self.short + 1

    def _stretched(self, length: int) -> Tensor:
        # transformers computes it from a tensor, which rounds otherwise than a Python number
        made, _ = ROPE_INIT_FUNCTIONS[self.kind](self.config, torch.device("cpu"), seq_len=torch.tensor(length))
        result: Tensor = made.float()
        return result


def turn_by_sequence(model: Any) -> None:
    """Put `SequenceRope` in the place of a decoder's rotary module where its type needs it."""
    if rope_type(model.config) in BY_LENGTH and not isinstance(model.rotary_emb, SequenceRope):
        model.rotary_emb = SequenceRope(model.rotary_emb)

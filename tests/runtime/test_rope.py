"""Rotary positions: a sequence of a packed step is turned as transformers turns it alone."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from loramux_runtime.fused.rope import longest_position

from .matrix import build


@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        (None, 64),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "dynamic", "factor": 2.0}, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 64),
        ({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}, 256),
    ],
)
def test_how_many_positions_a_base_was_made_for(rope: dict[str, Any] | None, longest: int) -> None:
    config = AutoConfig.for_model("llama", max_position_embeddings=64, rope_parameters=rope)
    assert longest_position(config) == longest
    assert longest_position(object()) is None


def test_a_base_knows_it_from_its_outline() -> None:
    assert build("llama", max_position_embeddings=99).longest_position == 99

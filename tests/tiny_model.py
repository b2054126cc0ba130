"""The tiny llama that tests train, profile and serve: its config.json, in one place."""

from __future__ import annotations

from typing import Any

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 280,
}
"""Its vocabulary holds every byte and the special tokens."""


def config(**changes: Any) -> dict[str, Any]:
    """That configuration with other values."""
    return {**CONFIG, **changes}

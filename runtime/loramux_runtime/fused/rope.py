"""Rotary positions of a packed step: every sequence is turned as it would be by itself."""

from __future__ import annotations

from typing import Any


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

"""This module chooses the device profile and the memory that the training commands go by."""

from __future__ import annotations

import os
import sys
from typing import Any

CARDS = (
    ("H100", "h100-80g"),
    ("A100", "a100-80g"),
    ("A6000", "a6000"),
    ("4090", "rtx-4090"),
    ("3090", "rtx-3090"),
    ("L4", "l4"),
)
"""Part of the card's name -> shipped profile."""


SMALLEST_MEMORY = 2**20
"""Bytes below which a size must have lost its unit."""
TRAINS_WITH = ("torch", "transformers", "safetensors")
"""Packages that the training runtime needs."""


def shipped_for(card: str) -> str | None:
    """Return the name of the profile that ships for a card, if one does."""
    return next((profile for part, profile in CARDS if part in card), None)


def need_torch() -> None:
    """Raise UsageError where the training runtime is not installed."""
    from importlib.util import find_spec

    from loramux_traces.errors import UsageError

    missing = [name for name in TRAINS_WITH if find_spec(name) is None]
    if missing:
        raise UsageError(f"this needs {' and '.join(missing)}: pip install 'loramux[runtime]'")


def hush_weight_bars(*, quiet: bool) -> None:
    """Have transformers draw no bars while it loads weights, where nobody is to see them."""
    if quiet or not sys.stderr.isatty():
        # read by transformers as it is imported, here and in the processes of this one
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def profile_name(device: Any, name: str | None, card: str | None = None) -> str:
    """Return the named profile, or the shipped one of the device.

    UsageError where none ships for its card. `card`: its name, where the device is another host's.
    """
    from loramux_runtime.fused.torch_devices import card_name
    from loramux_traces.errors import UsageError

    if name is not None:
        return name
    if device.type != "cuda":
        return "cpu"
    card = card or card_name(device)
    shipped = shipped_for(card)
    if shipped is None:
        raise UsageError(f"no profile ships for {card!r}: give one with --device-profile")
    return shipped


def choose_profile(
    device: Any, name: str | None, memory: str | None, *, allow_other: bool, card: str | None = None
) -> Any:
    """Return the device profile that decisions are made with.

    It is the named one, or the shipped one of the device, with the memory that --memory says.
    """
    from loramux_profiles.devices import load_device, with_memory
    from loramux_traces.errors import UsageError

    name = profile_name(device, name, card)
    profile = load_device(name, allow_other=allow_other)
    fitted = profile.fitted
    if fitted is not None and fitted.kind != device.type and not allow_other:
        raise UsageError(
            f"{name}: measured on {profile.name}, not on {device.type}; --allow-other uses it all the same"
        )
    return profile if memory is None else with_memory(profile, memory_bytes(memory), "--memory")


def memory_bytes(text: str) -> int:
    """Return the bytes of a size as in 6GiB; UsageError where it is none."""
    import re

    from loramux_traces.errors import UsageError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB)?", text.strip())
    if match is None:
        raise UsageError(f"--memory {text[:40]!r}: a number with B, KiB, MiB, GiB, KB, MB or GB")
    units = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    units |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
    size = int(float(match[1]) * units[match[2] or "B"])
    if size < SMALLEST_MEMORY:
        raise UsageError(f"--memory {text[:40]!r} is {size:,} bytes: give a unit, as in 6GiB")
    return size

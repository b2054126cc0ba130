"""Which device a run is on."""

from __future__ import annotations

import torch

from loramux_traces.errors import HardwareMissingError, UsageError


def choose_device(name: str) -> torch.device:
    """A device by name (cpu, cuda, cuda:N); auto: CUDA where there is one. UsageError or HardwareMissingError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name!r}: cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name!r}: cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HardwareMissingError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def card_name(device: torch.device) -> str:
    """The device as people call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

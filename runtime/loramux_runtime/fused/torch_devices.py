"""This module says which device a run is on."""

from __future__ import annotations

from typing import Final

import torch

from loramux_traces.errors import HardwareMissingError, UsageError


def choose_device(name: str, *, here: bool = True) -> torch.device:
    """Return a device by name: cpu, cuda or cuda:N; auto is CUDA where there is one.

    `here`: it must be in this machine. Raises UsageError for another name, HardwareMissingError
    where this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name!r}: cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name!r}: cpu, cuda or cuda:N")
    if here and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HardwareMissingError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


SMALL_HIDDEN: Final = 512
"""Below this hidden size a step's products are too small to share.

Two threads beside other work took twenty times as long.
"""


def set_threads(threads: int | None, hidden: int) -> None:
    """Set the CPU threads of torch to what was asked for.

    Else it is one for a small model, and torch's own choice for a large one.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    elif hidden < SMALL_HIDDEN:
        torch.set_num_threads(1)


def card_name(device: torch.device) -> str:
    """Return the device's name as people call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

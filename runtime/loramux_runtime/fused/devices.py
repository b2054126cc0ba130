"""Which device a run is on."""

from __future__ import annotations

from typing import Final

import torch

from loramux_traces.errors import HardwareMissingError, UsageError


def choose_device(name: str, *, here: bool = True) -> torch.device:
    """A device by name (cpu, cuda, cuda:N); auto: CUDA where there is one. UsageError or HardwareMissingError.

    `here`: it must be in this machine.
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
"""Below it a step's products are too small to share: two threads beside other work took twenty
times as long.
"""


def set_threads(threads: int | None, hidden: int) -> None:
    """CPU threads of torch: as asked for, else one for a small model and torch's own choice for a large one."""
    if threads is not None:
        torch.set_num_threads(threads)
    elif hidden < SMALL_HIDDEN:
        torch.set_num_threads(1)


def card_name(device: torch.device) -> str:
    """The device as people call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

"""This module says how a live scheduler is run, and on what.

There is no torch in here: the supervisor reads it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final, Literal

from loramux_runtime.live.drive.ray_cluster import need_ray
from loramux_traces.errors import UsageError

ENGINES: Final = ("local", "ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """Holds the options of `loramux run` that are not of the model or the device."""

    policy: str = "aspen"
    """Policy in the form of --policy: a name with parameters, or module:Class."""
    max_resident: float = inf
    recompute: bool = False
    checkpoint_s: float = 60.0
    """Seconds of training that a kill may cost.

    It is more where checkpoints would take over 2% of the time.
    """
    flush_s: float = 1.0
    """Seconds between two commits of progress where no job changes its state."""
    keep_s: float = inf
    """Seconds that what is known of an ended job is kept."""
    exit_when_idle: bool = False
    """Whether to end when every job has ended; else the scheduler waits for more."""
    on_policy_error: Literal["fallback", "exit"] = "fallback"
    """What happens to a policy that raises, over-commits or stalls.

    It is replaced by fifo, or it ends the scheduler.
    """
    record: bool = False
    """Whether to log every fused step, so that the decisions can be taken again.

    `loramux_policies.stepping.replay` takes them.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """Holds the options that are about the engine."""

    engine: str
    devices: int | None
    """Number of devices; None: all GPUs of the cluster, or one."""
    address: str | None
    """Address of a running Ray cluster."""
    device: str
    threads: int | None

    def __post_init__(self) -> None:
        """Raise UsageError where the options do not go together, or Ray is not installed."""
        if self.engine not in ENGINES:
            raise UsageError(f"--engine is {' or '.join(ENGINES)}, not {self.engine[:40]!r}")
        if self.engine == "ray":
            need_ray()
        elif self.devices not in (None, 1) or self.address is not None:
            raise UsageError("more than one device, or a Ray cluster, is for --engine ray")

"""How a live scheduler is run."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """Options of `loramux run` that are not of the model or the device."""

    policy: str = "aspen"
    """As of --policy: a name with parameters, or module:Class."""
    max_resident: float = inf
    recompute: bool = False
    checkpoint_s: float = 60.0
    """Seconds of training that a kill may cost; more where checkpoints would take over 2% of the
    time.
    """
    flush_s: float = 1.0
    """How often progress is committed where no job changes its state."""
    exit_when_idle: bool = False
    """End when every job has ended; else wait for more."""
    on_policy_error: Literal["fallback", "exit"] = "fallback"
    """A policy that raises, over-commits or stalls is replaced by fifo, or ends the scheduler."""
    record: bool = False
    """Log every fused step, so that the decisions can be taken again
    (`loramux_policies.stepping.replay`).
    """

"""This module says what a policy is.

It is an order of the waiting queue, where to place, and what to fuse.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from loramux_policies.rule_helpers import fuse_all
from loramux_policies.views import ClusterView, DeviceView, FusedStep, Order, Plan, first_come


class Policy:
    """Serves as the base class of every policy; the simulator and the runtime call the same object.

    There are two time scales: `place()` at events (start, pause, reject; a delta: what is not named
    stays) and `fuse()` before every step. Both are pure: time comes from the view, the same view
    gives the same answer, nothing is kept on `self` between calls. Parameters are keyword arguments
    of `__init__` with defaults, set by `--policy "name:key=value,..."`.
    """

    name: ClassVar[str] = ""
    """Name in commands and results: by `@register`, as the class says, or its class name."""
    order: Order = Order(key=first_come)
    """Order of the waiting queue; the default is first come, first served."""
    preempts: ClassVar[bool] = False
    """Whether `place()` ever pauses a job; shown by `loramux policies`."""
    oracle: ClassVar[bool] = False
    """Whether the policy sees the true end (`stop_step`) as the declared one.

    This is only for upper bounds on what prediction could gain.
    """
    copies: ClassVar[Literal["shared", "separate"]] = "shared"
    """Whether residents share one base copy in one process, or each runs a process of its own."""
    slices: ClassVar[bool] = False
    """Whether the policy gives residents shares below 1 (tied jobs on one seat)."""
    seats: float = float("inf")
    """Most residents that this policy wants on one device.

    The loop takes the smaller of it and --max-resident.
    """
    max_fused: int | None = None
    """Most jobs that `fuse()` puts into one step.

    None: every resident is in every step (the default `fuse`).
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:  # else a variant of a policy would go by that one's name
            cls.name = cls.__name__

    def place(self, view: ClusterView) -> Plan:
        """Say who starts, pauses or is turned away now; return the plan made with `view.plan()`."""
        raise TypeError(f"policy {type(self).__name__} does not say how to place(view)")

    def fuse(self, device: DeviceView) -> FusedStep:
        """Say which residents' next micro-batches run together.

        The default is all of them, as far as real lengths fit.
        """
        return fuse_all(device)

    def windows(self, n_residents: int) -> bool:
        """Return whether `fuse()` may leave out some of that many residents.

        Rates then come from a roll-out.
        """
        if self.max_fused is not None:
            return n_residents > self.max_fused
        return type(self).fuse is not Policy.fuse

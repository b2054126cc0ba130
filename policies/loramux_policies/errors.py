"""What goes wrong with a policy, always with its name."""

from __future__ import annotations

from loramux_traces.errors import Interrupted, LoramuxError, StateError


class PolicyError(LoramuxError):
    """A policy raised, over-committed a device, named an unknown or duplicate job, or stalled. Exit code 2."""

    exit_code = 2


class LeftTheRecord(StateError):
    """Decisions have led to where a recorded run says nothing (`replay`)."""


class PlanError(PolicyError):
    """One call on a plan that cannot be carried out; nothing of the plan is applied."""


def let_through(error: BaseException) -> None:
    """Raise it again where it is no fault of the policy's: Ctrl-C or a signal. (sys.exit in a policy is one.)"""
    if isinstance(error, KeyboardInterrupt | Interrupted):
        raise error

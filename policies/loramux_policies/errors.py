"""This module names what goes wrong with a policy, always with the policy's name."""

from __future__ import annotations

from loramux_traces.errors import Interrupted, LoramuxError, StateError


class PolicyError(LoramuxError):
    """Means that a policy raised, over-committed a device, named a bad job, or stalled.

    A bad job is an unknown or a duplicate one. The exit code is 2.
    """

    exit_code = 2


class LeftTheRecord(StateError):
    """Means that decisions have led to where a recorded run says nothing (`replay`)."""


class PlanError(PolicyError):
    """Means that a call on a plan cannot be carried out; nothing of the plan is applied."""


def let_through(error: BaseException) -> None:
    """Raise the error again where the policy is not at fault: Ctrl-C or a signal.

    sys.exit in a policy is the policy's fault.
    """
    if isinstance(error, KeyboardInterrupt | Interrupted):
        raise error

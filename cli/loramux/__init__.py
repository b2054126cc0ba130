"""loramux schedules LoRA and mixture-of-LoRA-experts fine-tuning jobs, as a library.

The scheduling is memory-aware.

    from loramux import simulate, Policy, read_trace, register

The names are imported when they are asked for, so that nothing heavy is loaded before; none of them
needs torch. What they are is said where they stand (`HOME`). `python -m loramux` is the command.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from loramux_policies.policy import Policy
    from loramux_policies.registry import create, load_file, register
    from loramux_policies.rule_helpers import fuse_all, start_in_order, start_or_preempt
    from loramux_policies.stepping.replay import replay
    from loramux_policies.views import Entry, FusedStep, JobView, Order
    from loramux_profiles.checked import generate
    from loramux_simulator.api import simulate
    from loramux_simulator.options import SimOptions
    from loramux_simulator.run import RunResult
    from loramux_traces.job import JobSpec, Trace
    from loramux_traces.reader import read_trace
    from loramux_traces.writer import write_trace

HOME: Final = {
    "Entry": "loramux_policies.views",
    "FusedStep": "loramux_policies.views",
    "JobSpec": "loramux_traces.job",
    "JobView": "loramux_policies.views",
    "Order": "loramux_policies.views",
    "Policy": "loramux_policies.policy",
    "RunResult": "loramux_simulator.run",
    "SimOptions": "loramux_simulator.options",
    "Trace": "loramux_traces.job",
    "create": "loramux_policies.registry",
    "fuse_all": "loramux_policies.rule_helpers",
    "generate": "loramux_profiles.checked",
    "load_file": "loramux_policies.registry",
    "read_trace": "loramux_traces.reader",
    "register": "loramux_policies.registry",
    "replay": "loramux_policies.stepping.replay",
    "simulate": "loramux_simulator.api",
    "start_in_order": "loramux_policies.rule_helpers",
    "start_or_preempt": "loramux_policies.rule_helpers",
    "write_trace": "loramux_traces.writer",
}
"""Module that each name comes from."""

__all__ = [
    "Entry",
    "FusedStep",
    "JobSpec",
    "JobView",
    "Order",
    "Policy",
    "RunResult",
    "SimOptions",
    "Trace",
    "create",
    "fuse_all",
    "generate",
    "load_file",
    "read_trace",
    "register",
    "replay",
    "simulate",
    "start_in_order",
    "start_or_preempt",
    "write_trace",
]


def __getattr__(name: str) -> Any:
    """Import one of the names, and keep it."""
    if name not in HOME:
        raise AttributeError(f"module 'loramux' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *HOME})

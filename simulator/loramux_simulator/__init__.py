"""A device made of SimPy: replay a trace under a policy. `from loramux_simulator import simulate`."""

from loramux_simulator.api import RunResult, simulate
from loramux_simulator.options import SimOptions

__all__ = ["RunResult", "SimOptions", "simulate"]

"""This package is a device made of SimPy: it replays a trace under a policy.

Use it as `from loramux_simulator import simulate`.
"""

from loramux_simulator.api import simulate
from loramux_simulator.options import SimOptions
from loramux_simulator.run import RunResult

__all__ = ["RunResult", "SimOptions", "simulate"]

"""This package trains many adapters together on one frozen base model."""

from loramux_runtime.old_names import MOVED
from loramux_traces.moved import moved

moved("loramux_runtime", MOVED)

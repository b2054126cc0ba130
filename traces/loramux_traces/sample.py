"""Make the shipped sample trace.

`loramux trace generate` with its command line makes the same file.
"""

from __future__ import annotations

from typing import Any, Final

from loramux_traces.generators import generate
from loramux_traces.job import Trace

#: Two weeks of four busy devices: load .9 of four, gangs of at most 4, nothing above 12 hours,
#: three base models.
PARAMETERS: Final[dict[str, Any]] = {
    "rho": 0.9,
    "servers": 4,
    "max_gpus": 4,
    "max_duration_s": 43200.0,
    "users": 4,
    "bases": "llama-2-7b:0.6,llama-3-8b:0.25,mistral-7b:0.15",
    "methods": "lora:0.5,mixlora:0.25,dynmole:0.15,mola:0.1",
}
JOBS: Final = 1000
SEED: Final = 7


def make_sample() -> Trace:
    """Make the trace in traces/data/sample.csv."""
    return generate("philly-like", jobs=JOBS, seed=SEED, name="sample", **PARAMETERS)

"""Make Gavel's synthetic workload (Narayanan et al., OSDI 2020).

Durations are log-uniform, gangs are of 1 to 8, arrivals are Poisson. Durations are 60 * 10^U(1.5,
3) seconds with probability .8, else 60 * 10^U(3, 4); GPUs 1/2/4/8 with .70/.10/.15/.05.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from loramux_traces.generators.arrivals import job_id, poisson_arrivals, rate_for
from loramux_traces.generators.registry import Generator
from loramux_traces.lora_mix import DEFAULT_MIX
from loramux_traces.sampling import pick, uniforms

_LONG_SHARE: Final = 0.2
_GPUS: Final = ((1, 0.70), (2, 0.10), (4, 0.15), (8, 0.05))


def _mean_log_uniform(low: float, high: float) -> float:
    return float((10**high - 10**low) / ((high - low) * math.log(10)))


#: Mean duration in seconds (about 10,800).
MEAN_S: Final = 60 * ((1 - _LONG_SHARE) * _mean_log_uniform(1.5, 3) + _LONG_SHARE * _mean_log_uniform(3, 4))


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class GavelParams:
    rho: Annotated[float, Field(gt=0, le=1e4, description="GPU-seconds offered per device and second")] = 0.8
    servers: Annotated[int, Field(ge=1, le=10**6, description="devices that the load is meant for")] = 4
    rate: Annotated[float | None, Field(gt=0, le=1e6, description="arrivals per second, instead of rho")] = None
    max_gpus: Annotated[int, Field(ge=1, le=8, description="largest gang; the shares of smaller ones grow")] = 8
    users: Annotated[int, Field(ge=1, le=10_000, description="users, equally likely")] = 16
    bases: Annotated[str, Field(description="base models name:weight,... instead of the default mix")] = ""
    methods: Annotated[str, Field(description="methods name:weight,... instead of the default mix")] = ""


def build(params: GavelParams, n: int, seed: int) -> tuple[list[dict[str, Any]], str]:
    """Return rows of `n` jobs; job i depends on (seed, i) alone."""
    shares = [(g, share) for g, share in _GPUS if g <= params.max_gpus]
    mean_gpus = sum(g * share for g, share in shares) / sum(share for _, share in shares)
    rate = params.rate or rate_for(params.rho, params.servers, MEAN_S * mean_gpus)
    submit = poisson_arrivals(seed, n, rate).tolist()
    u = uniforms(seed, "size", n)
    long = uniforms(seed, "size-phase", n) < _LONG_SHARE
    duration = (60 * 10 ** np.where(long, 3 + u, 1.5 + 1.5 * u)).tolist()
    gpus = pick(uniforms(seed, "gpus", n), shares)
    users = np.floor(uniforms(seed, "user", n) * params.users).astype(np.int64).tolist()
    mix = DEFAULT_MIX.with_shares(base_models=params.bases, methods=params.methods).draw(seed, n)
    rows = [
        {
            "job_id": job_id(i),
            "submit_s": submit[i],
            "duration_s": duration[i],
            "num_gpus": gpus[i],
            "user": f"u{users[i]:02d}",
            **mix[i],
        }
        for i in range(n)
    ]
    return (
        rows,
        f"Gavel's durations and GPU counts, Poisson arrivals of {rate:.6g}/s; LoRA columns from an assumed mix.",
    )


GENERATOR: Final = Generator(
    "gavel", "Gavel's workload: log-uniform durations, gangs of 1 to 8, Poisson arrivals", GavelParams, build
)

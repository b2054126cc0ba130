"""Make bursty arrivals with sizes of a chosen law.

Arrivals are a Markov-modulated Poisson process of two states, calm and burst. The burst state has
`burst_ratio` times the rate of the calm one and holds for `burst_share` of the time; stays in both
are exponential. The mean rate is that of the load, so a bursty trace and a Poisson one of equal
load compare directly.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from loramux_traces.arrays import Floats
from loramux_traces.errors import UsageError
from loramux_traces.generators.arrivals import SizeLaw, job_id, rate_for, sizes
from loramux_traces.generators.registry import Generator
from loramux_traces.lora_mix import DEFAULT_MIX
from loramux_traces.sampling import exponentials

_MOST_CYCLES: Final = 50_000_000


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class BurstyParams:
    sizes: Annotated[SizeLaw, Field(description="law of the sizes")] = "lognormal"
    mean_s: Annotated[float, Field(ge=1e-6, le=1e8, description="mean size in seconds")] = 1800.0
    scv: Annotated[float | None, Field(gt=0, le=1e4, description="variance of the sizes over the squared mean")] = None
    rho: Annotated[float, Field(gt=0, le=1e6, description="load per server: rate x mean_s / servers")] = 0.8
    servers: Annotated[int, Field(ge=1, le=10**6, description="devices that the load is meant for")] = 4
    rate: Annotated[float | None, Field(gt=0, le=1e9, description="arrivals per second, instead of rho")] = None
    burst_ratio: Annotated[float, Field(ge=1, le=1e6, description="rate in a burst over the calm rate")] = 20.0
    burst_share: Annotated[float, Field(gt=0, lt=1, description="share of the time in a burst")] = 0.1
    burst_jobs: Annotated[float, Field(ge=0.1, le=1e6, description="mean number of arrivals in one burst")] = 20.0
    bases: Annotated[str, Field(description="base models name:weight,... instead of the default mix")] = ""
    methods: Annotated[str, Field(description="methods name:weight,... instead of the default mix")] = ""


def arrivals(params: BurstyParams, n: int, seed: int, rate: float) -> Floats:
    """Return arrival times in seconds.

    A unit Poisson process is run through the integral of the changing rate.
    """
    wanted = exponentials(seed, "gap", n).cumsum()
    calm_rate = rate / (1 - params.burst_share + params.burst_share * params.burst_ratio)
    burst_rate = calm_rate * params.burst_ratio
    mean_burst_s = params.burst_jobs / burst_rate
    mean_calm_s = mean_burst_s * (1 - params.burst_share) / params.burst_share
    cycle_jobs = params.burst_jobs + mean_calm_s * calm_rate
    cycles = int(1.2 * wanted[-1] / cycle_jobs) + 8
    if cycles > _MOST_CYCLES:
        raise UsageError(f"bursty: {n} jobs in bursts of {params.burst_jobs:g} are too many bursts; make them larger")
    while True:
        calm = exponentials(seed, "calm", cycles) * mean_calm_s
        burst = exponentials(seed, "burst", cycles) * mean_burst_s
        stays = np.column_stack((calm, burst)).ravel()
        expected = np.concatenate(([0.0], np.cumsum(stays * np.tile((calm_rate, burst_rate), cycles))))
        if expected[-1] >= wanted[-1]:
            break
        cycles *= 2
    times: Floats = np.interp(wanted, expected, np.concatenate(([0.0], np.cumsum(stays))))
    return times


def build(params: BurstyParams, n: int, seed: int) -> tuple[list[dict[str, Any]], str]:
    """Return rows of `n` jobs; job i depends on (seed, i) alone."""
    rate = params.rate or rate_for(params.rho, params.servers, params.mean_s)
    submit = arrivals(params, n, seed, rate).tolist()
    duration = sizes(params.sizes, params.mean_s, params.scv, seed, n).tolist()
    mix = DEFAULT_MIX.with_shares(base_models=params.bases, methods=params.methods).draw(seed, n)
    rows = [{"job_id": job_id(i), "submit_s": submit[i], "duration_s": duration[i], **mix[i]} for i in range(n)]
    return rows, (
        f"Markov-modulated Poisson arrivals of {rate:.6g}/s on average, {params.sizes} sizes of mean "
        f"{params.mean_s:.6g} s; LoRA columns from an assumed mix."
    )


GENERATOR: Final = Generator("bursty", "calm and burst (Markov-modulated Poisson) arrivals", BurstyParams, build)

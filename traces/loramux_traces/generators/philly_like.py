"""Make Philly-like traces from summary statistics of the Microsoft Philly trace.

The statistics are of Jeon et al., ATC 2019 (CC-BY-4.0).

Kept from Philly: arrivals by hour of the week, the law of the gaps between them (bursts: half are
under ten seconds), the laws of durations of one-GPU and of larger jobs, the correlation of
successive durations, the shares of GPU counts and of virtual clusters. Users (a Zipf law in each
virtual cluster) and the LoRA columns are modelled.

Not kept: the statistics end at the 99.95% quantile, so that the longest outages and jobs are
missing (gap CV^2 about 17 where Philly has 229, duration CV^2 about 32 where it has 41).
"""

from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any, Final

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from loramux_traces.arrays import Floats
from loramux_traces.data import philly_stats_path
from loramux_traces.errors import UsageError
from loramux_traces.generators.arrivals import job_id
from loramux_traces.generators.registry import Generator
from loramux_traces.lora_mix import DEFAULT_MIX
from loramux_traces.sampling import from_quantiles, pick, uniforms

_HOUR_S: Final = 3600.0
_WEEK_S: Final = 168 * _HOUR_S


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PhillyParams:
    rho: Annotated[
        float | None,
        Field(gt=0, le=1e4, description="GPU-seconds / (servers x span), hit exactly; omitted: Philly's own rate"),
    ] = None
    servers: Annotated[int, Field(ge=1, le=10**6, description="devices that the load is meant for")] = 4
    max_gpus: Annotated[int, Field(ge=1, le=32, description="largest gang; the shares of smaller ones grow")] = 32
    max_duration_s: Annotated[
        float | None, Field(ge=60, le=1e8, description="longest job: durations are drawn below it, not clipped")
    ] = None
    users: Annotated[int, Field(ge=1, le=10_000, description="users in each virtual cluster")] = 8
    bases: Annotated[str, Field(description="base models name:weight,... instead of the default mix")] = ""
    methods: Annotated[str, Field(description="methods name:weight,... instead of the default mix")] = ""


@cache
def stats() -> dict[str, Any]:
    """Read the published summary; `source` in it gives the attribution."""
    loaded: dict[str, Any] = json.loads(philly_stats_path().read_text(encoding="utf-8"))
    return loaded


def _quantiles(key: str) -> list[tuple[float, float]]:
    return [(float(p), float(q)) for p, q in stats()[key].items()]


def _gaps(seed: int, n: int) -> Floats:
    """Return gaps of mean 1 in operational time (the clock that runs faster in busy hours)."""
    table = _quantiles("interarrival_s_quantiles")
    p, q = np.array(table).T
    mean = float(np.sum((q[1:] + q[:-1]) / 2 * np.diff(p)) + q[-1] * (1 - p[-1]))
    values: Floats = from_quantiles(uniforms(seed, "philly-gap", n), table) / mean
    return values


def _arrivals(operational: Floats, rates: Floats) -> Floats:
    """Return when the expected number of arrivals reaches `operational`.

    The times are in seconds since Monday 00:00.
    """
    cumulative = np.concatenate(([0.0], np.cumsum(rates)))
    weeks = np.floor(operational / cumulative[-1])
    within = operational - weeks * cumulative[-1]
    values: Floats = weeks * _WEEK_S + np.interp(within, cumulative, np.arange(169) * _HOUR_S)
    return values


def _expected_until(time_s: float, rates: Floats) -> float:
    """Return the expected number of arrivals in the first `time_s` seconds.

    This is the inverse of `_arrivals`.
    """
    cumulative = np.concatenate(([0.0], np.cumsum(rates)))
    weeks = int(time_s // _WEEK_S)
    return weeks * float(cumulative[-1]) + float(np.interp(time_s % _WEEK_S, np.arange(169) * _HOUR_S, cumulative))


def _durations(seed: int, gpus: Floats, longest: float | None) -> Floats:
    """Draw the durations of the jobs, in seconds.

    Successive logarithms are correlated as in Philly (the runs of one user resemble each other).
    """
    from scipy.signal import lfilter
    from scipy.special import ndtr, ndtri

    correlation = stats()["log_duration_lag1_corr_global"]
    noise = ndtri(uniforms(seed, "philly-duration", len(gpus)))
    noise[1:] *= np.sqrt(1 - correlation**2)
    u = ndtr(lfilter([1.0], [1.0, -correlation], noise))
    values = np.empty(len(gpus))
    for key, chosen in (("duration_s_quantiles_1gpu", gpus == 1), ("duration_s_quantiles_multi", gpus > 1)):
        table = _quantiles(key)
        reach = 1.0
        if longest is not None:
            p, q = np.array(table).T
            reach = float(np.interp(longest, q, p))
        values[chosen] = from_quantiles(u[chosen] * reach, table)
    return np.round(values, 3)


def _users(seed: int, groups: list[str], per_group: int) -> list[str]:
    zipf = [(rank, 1.0 / rank) for rank in range(1, per_group + 1)]
    return [
        f"{group}-u{rank:02d}"
        for group, rank in zip(groups, pick(uniforms(seed, "user", len(groups)), zipf), strict=True)
    ]


def build(params: PhillyParams, n: int, seed: int) -> tuple[list[dict[str, Any]], str]:
    """Return rows of `n` jobs.

    All columns depend on (seed, index) alone, except `submit_s` under `rho`.
    """
    shares = [(int(g), share) for g, share in stats()["num_gpus_share"].items() if int(g) <= params.max_gpus]
    gpus = pick(uniforms(seed, "philly-gpus", n), shares)
    duration = _durations(seed, np.array(gpus, dtype=np.float64), params.max_duration_s)
    rates = np.array(stats()["arrivals_per_hour_of_week"], dtype=np.float64).ravel()
    operational = np.cumsum(_gaps(seed, n))
    if params.rho is not None:
        if n < 2:
            raise UsageError(
                "philly-like with a load needs at least 2 jobs: the load is over the time between the first and last"
            )
        span = float(np.sum(duration * np.array(gpus))) / (params.servers * params.rho)
        operational = (operational - operational[0]) * (
            _expected_until(span, rates) / (operational[-1] - operational[0])
        )
    submit = np.round(_arrivals(operational, rates), 3)
    groups = pick(uniforms(seed, "philly-group", n), list(stats()["virtual_cluster_share"].items()))
    users = _users(seed, groups, params.users)
    mix = DEFAULT_MIX.with_shares(base_models=params.bases, methods=params.methods).draw(seed, n)
    rows = [
        {
            "job_id": job_id(i),
            "submit_s": float(submit[i]),
            "duration_s": float(duration[i]),
            "num_gpus": gpus[i],
            "user": users[i],
            "group": groups[i],
            **mix[i],
        }
        for i in range(n)
    ]
    source = (
        "Philly-like: arrivals by hour of week, gaps, durations, GPU counts and virtual clusters follow summary "
        "statistics of the Microsoft Philly traces (Jeon et al., ATC 2019, CC-BY-4.0); users and all LoRA columns "
        "(base_model, method, rank, batch_size, seq_len, recompute, priority) are drawn from an assumed mix; "
        "time 0 is a Monday "
        "midnight."
    )
    return rows, source


GENERATOR: Final = Generator(
    "philly-like", "arrivals, durations and GPU counts like Microsoft Philly's, LoRA columns drawn", PhillyParams, build
)

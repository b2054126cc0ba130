"""Provide what the generators share: job ids, rates for a load, sizes of a given mean."""

from __future__ import annotations

import math
from typing import Final, Literal

import numpy as np

from loramux_traces.arrays import Floats
from loramux_traces.errors import UsageError
from loramux_traces.sampling import exponentials, uniforms

SizeLaw = Literal["exp", "deterministic", "hyperexp", "lognormal", "uniform", "pareto"]
#: Shortest job that is generated, in seconds (the schema's lower bound).
SHORTEST_S: Final = 1e-9
#: Squared coefficient of variation of the laws that have one to choose, where none is given.
_DEFAULT_SCV: Final = {"lognormal": math.e - 1, "pareto": 4.0}


def job_id(index: int) -> str:
    """Return an id of fixed width.

    So an id does not depend on how many jobs there are, and ids sort as the jobs do.
    """
    return f"job-{index:08d}"


def rate_for(load: float, servers: int, work_s: float) -> float:
    """Return the arrivals per second that offer `load` of `servers` devices.

    A job brings `work_s` device-seconds (mean).
    """
    return load * servers / work_s


def poisson_arrivals(seed: int, n: int, rate: float) -> Floats:
    """Return the times of a Poisson process of `rate` per second.

    The first time is that of the first arrival, which is not at 0.
    """
    times: Floats = (exponentials(seed, "gap", n) / rate).cumsum()
    return times


def sizes(law: SizeLaw, mean_s: float, scv: float | None, seed: int, n: int) -> Floats:
    """Draw `n` job sizes in seconds of mean `mean_s`.

    exp; deterministic; hyperexp (two phases: without `scv` .9/.1 with means .5/5.5 of the mean,
    which has scv 5.5; with it balanced means); lognormal (default scv e - 1: sigma 1); pareto
    (default scv 4); uniform on [0, 2 mean]. `scv` is the variance over the squared mean. Raises
    UsageError where the law has no such scv.
    """
    u = uniforms(seed, "size", n)
    if law in ("exp", "deterministic", "uniform"):
        fixed = {"exp": 1.0, "deterministic": 0.0, "uniform": 1 / 3}[law]
        if scv is not None and abs(scv - fixed) > 1e-6:
            raise UsageError(f"sizes {law} have scv {fixed:.6g}; scv can be chosen for hyperexp, lognormal and pareto")
    values: Floats
    if law == "exp":
        values = -mean_s * np.log1p(-u)
    elif law == "deterministic":
        values = np.full(n, mean_s)
    elif law == "uniform":
        values = 2 * mean_s * u
    elif law == "hyperexp":
        p, short, long = _hyperexp(mean_s, scv)
        phase = uniforms(seed, "size-phase", n)
        values = -np.where(phase < p, short, long) * np.log1p(-u)
    elif law == "lognormal":
        from scipy.special import ndtri

        variance = math.log1p(_DEFAULT_SCV[law] if scv is None else scv)
        values = mean_s * np.exp(math.sqrt(variance) * ndtri(u) - variance / 2)
    else:
        # Pareto with shape a: mean a m / (a - 1), scv 1 / (a (a - 2)).
        shape = 1 + math.sqrt(1 + 1 / (_DEFAULT_SCV[law] if scv is None else scv))
        values = mean_s * (shape - 1) / shape * (1 - u) ** (-1 / shape)
    return np.maximum(values, SHORTEST_S)


def _hyperexp(mean_s: float, scv: float | None) -> tuple[float, float, float]:
    """Return (probability of the first phase, its mean, the mean of the second)."""
    if scv is None:
        return 0.9, 0.5 * mean_s, 5.5 * mean_s
    if scv <= 1:
        raise UsageError(f"hyperexp sizes need scv above 1, not {scv:g} (1 is exp)")
    p = (1 + math.sqrt((scv - 1) / (scv + 1))) / 2
    return p, mean_s / (2 * p), mean_s / (2 * (1 - p))

"""Mean response times of textbook queues, by numeric integration over the size law.

Independent of loramux.

Notation: load rho = lambda E[S]; part(x) = int_0^x t f dt; part2(x) = int_0^x t^2 f dt; tail(x) =
P(S > x).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc, ndtr

Array = NDArray[np.float64]
Function = Callable[[Array], Array]


@dataclass(frozen=True)
class SizeLaw:
    """A law of job sizes; `density` is None for the atom at the mean."""

    name: str
    mean: float
    second: float
    tail: Function
    part: Function
    part2: Function
    density: Function | None
    # log-spaced panels between these; sizes beyond the upper one weigh nothing
    edges: tuple[float, float]
    sample: Callable[[np.random.Generator, int], Array]


def exponential(mean: float = 1.0) -> SizeLaw:
    return hyperexponential((1.0,), (mean,), name="exp")


def hyperexponential(
    weights: Sequence[float] = (0.9, 0.1), means: Sequence[float] = (0.5, 5.5), name: str = "hyperexp"
) -> SizeLaw:
    """A mixture of exponentials; by default H2 with mean 1 and second moment 6.5."""
    p: Array = np.array(weights, dtype=np.float64)
    m: Array = np.array(means, dtype=np.float64)

    def mix(of: Function, scale: Array) -> Function:
        return lambda x: np.asarray((of(np.asarray(x)[..., None] / m) * (p * scale)).sum(axis=-1))

    def sample(rng: np.random.Generator, n: int) -> Array:
        which: NDArray[np.int64] = rng.choice(len(m), n, p=p)
        return rng.exponential(1.0, n) * m[which]

    return SizeLaw(
        name=name,
        mean=float(p @ m),
        second=float(2 * p @ m**2),
        tail=mix(lambda u: np.exp(-u), np.ones_like(m)),
        part=mix(lambda u: gammainc(2, u), m),
        part2=mix(lambda u: gammainc(3, u), 2 * m**2),
        density=mix(lambda u: np.exp(-u), 1 / m),
        edges=(float(m.min()) * 1e-6, float(m.max()) * 50),
        sample=sample,
    )


def lognormal(mean: float = 1.0, sigma: float = 1.0) -> SizeLaw:
    mu = log(mean) - sigma**2 / 2

    def z(x: Array, moment: int) -> Array:
        return np.asarray((np.log(x) - mu) / sigma - moment * sigma)

    return SizeLaw(
        name="lognormal",
        mean=mean,
        second=mean**2 * exp(sigma**2),
        tail=lambda x: ndtr(-z(x, 0)),
        part=lambda x: mean * ndtr(z(x, 1)),
        part2=lambda x: mean**2 * exp(sigma**2) * ndtr(z(x, 2)),
        density=lambda x: np.exp(-(z(x, 0) ** 2) / 2) / (x * sigma * sqrt(2 * np.pi)),
        edges=(exp(mu - 10 * sigma), exp(mu + 2 * sigma**2 + 10 * sigma)),
        sample=lambda rng, n: rng.lognormal(mu, sigma, n),
    )


def uniform(mean: float = 1.0, low: float = 0.0) -> SizeLaw:
    """Uniform on (low, 2 mean - low)."""
    high = 2 * mean - low
    width = high - low
    return SizeLaw(
        name="uniform",
        mean=mean,
        second=(high**3 - low**3) / (3 * width),
        tail=lambda x: (high - np.clip(x, low, high)) / width,
        part=lambda x: (np.clip(x, low, high) ** 2 - low**2) / (2 * width),
        part2=lambda x: (np.clip(x, low, high) ** 3 - low**3) / (3 * width),
        density=lambda x: np.where((x >= low) & (x <= high), 1 / width, 0.0),
        edges=(max(low, high * 1e-6), high),
        sample=lambda rng, n: rng.uniform(low, high, n),
    )


def deterministic(mean: float = 1.0) -> SizeLaw:
    return SizeLaw(
        name="deterministic",
        mean=mean,
        second=mean**2,
        tail=lambda x: np.where(x < mean, 1.0, 0.0),
        part=lambda x: np.where(x < mean, 0.0, mean),
        part2=lambda x: np.where(x < mean, 0.0, mean**2),
        density=None,
        edges=(mean * 1e-6, mean),
        sample=lambda rng, n: np.full(n, mean),
    )


def _grid(law: SizeLaw, panels: int = 300, order: int = 12) -> tuple[Array, Array]:
    """Nodes x and weights w with int_0^upper g dx ~ sum w g(x).

    Gauss-Legendre on log-spaced panels.
    """
    nodes, weights = np.polynomial.legendre.leggauss(order)
    ends = np.concatenate([[0.0], np.geomspace(*law.edges, panels)])
    parts = [((a + b) / 2 + (b - a) / 2 * nodes, (b - a) / 2 * weights) for a, b in pairwise(ends)]
    return np.concatenate([x for x, _ in parts]), np.concatenate([w for _, w in parts])


def _average(law: SizeLaw, response: Function) -> float:
    """E[response(S)]."""
    if law.density is None:
        return float(response(np.array([law.mean]))[0])
    x, w = _grid(law)
    return float(np.sum(w * law.density(x) * response(x)))


def fcfs(law: SizeLaw, rho: float) -> float:
    """Pollaczek-Khinchine."""
    lam = rho / law.mean
    return law.mean + lam * law.second / (2 * (1 - rho))


def ps(law: SizeLaw, rho: float) -> float:
    """Processor sharing: insensitive."""
    return law.mean / (1 - rho)


def srpt(law: SizeLaw, rho: float) -> float:
    """Schrage-Miller, with the mean residence as int tail(t)/(1-rho(t)) dt.

    Equal sizes: first come first served.
    """
    if law.density is None:
        return fcfs(law, rho)
    lam = rho / law.mean
    wait = _average(law, lambda x: lam * (law.part2(x) + x**2 * law.tail(x)) / (2 * (1 - lam * law.part(x)) ** 2))
    x, w = _grid(law)
    return wait + float(np.sum(w * law.tail(x) / (1 - lam * law.part(x))))


def psjf(law: SizeLaw, rho: float) -> float:
    """Preemptive shortest job first, by original size."""
    if law.density is None:
        return fcfs(law, rho)
    lam = rho / law.mean

    def response(x: Array) -> Array:
        spare = 1 - lam * law.part(x)
        return lam * law.part2(x) / (2 * spare**2) + x / spare

    return _average(law, response)


def sjf(law: SizeLaw, rho: float) -> float:
    """Non-preemptive shortest job first."""
    if law.density is None:
        return fcfs(law, rho)
    lam = rho / law.mean
    return _average(law, lambda x: x + lam * law.second / (2 * (1 - lam * law.part(x)) ** 2))


def las(law: SizeLaw, rho: float) -> float:
    """Least attained service; int_0^x tail = E[min(S,x)] and int_0^x t tail = E[min(S,x)^2]/2.

    Holds for atoms too.
    """
    lam = rho / law.mean

    def response(x: Array) -> Array:
        spare = 1 - lam * (law.part(x) + x * law.tail(x))
        return lam * (law.part2(x) + x**2 * law.tail(x)) / 2 / spare**2 + x / spare

    return _average(law, response)


def mmc(mean: float, rho: float, servers: int) -> float:
    """Erlang C: exponential sizes, c servers, rho the load of each."""
    offered = rho * servers
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = offered * blocked / (k + offered * blocked)
    waits = blocked / (1 - rho * (1 - blocked))
    return mean + waits * mean / (servers * (1 - rho))


def co_running(mean: float, arrival_rate: float, curve: Callable[[int], float]) -> float:
    """n jobs share curve(n) equally: pi_n ~ (lambda E[S])^n / prod curve(i), for ANY size law.

    Then Little.
    """
    weight, total, jobs = 1.0, 1.0, 0.0
    for n in range(1, 100_000):
        weight *= arrival_rate * mean / curve(n)
        total += weight
        jobs += n * weight
        if n * weight < 1e-16 * total:
            break
    return jobs / total / arrival_rate


def kaufman_roberts(capacity: int, classes: Sequence[tuple[float, int]]) -> tuple[list[float], float]:
    """Each class's blocking, and the memory utilisation.

    Classes of offered load a and size b are on `capacity` units.
    """
    q = [1.0]
    for j in range(1, capacity + 1):
        q.append(sum(a * b * q[j - b] for a, b in classes if b <= j) / j)
    total = sum(q)
    blocking = [sum(q[capacity - b + 1 :]) / total for _, b in classes]
    return blocking, sum(j * weight for j, weight in enumerate(q)) / total / capacity

"""This module gives the expected fused step of a set of jobs.

It is the mean over lengths of a time that is not linear in them, never t(E[L]). It is used for a
job alone (`solo_step_s`) and by the simulator's rate fidelity for every set, so that a set of one
runs at exactly its solo speed. Padded: E over the CDF of the longest row, on the rounding grid (the
log CDFs of rows add). Packed: `STRATA` stratified micro-batches per job, summed over the set,
rounded up, averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from loramux_profiles.length_table import ORDERS, STRATA
from loramux_profiles.memory import Fusion
from loramux_profiles.steptime import method_floors
from loramux_profiles.work import ROUNDING, JobCost
from loramux_traces.arrays import Floats

_HALF: Final = 0.5


class ExpectedStep(NamedTuple):
    """Holds the means over lengths of one fused step."""

    seconds: float
    computed_tokens: float
    """Tokens with pads and rounding included."""
    real_tokens: float


@lru_cache(maxsize=2048)
def packed_vectors(job: JobCost, order: int) -> Floats:
    """Return [2, STRATA] of equally likely micro-batches of a job.

    The first row is tokens, the second the seconds of tokens and squares. The array takes 8 KiB and
    is read-only.
    """
    tokens, squares = job.lengths.strata(job.rows, order)
    vectors = np.empty((2, STRATA))
    vectors[0] = tokens
    vectors[1] = job.token_s * tokens + job.square_s * squares
    vectors.flags.writeable = False
    return vectors


class PackedMoments(NamedTuple):
    """Holds means and extremes of a job's strata, for sets whose floor cannot matter."""

    tokens: float
    work: float
    least_work: float
    most_work: float
    spread: bool
    """Whether the token count varies by more than the rounding.

    Rounding then adds half a unit on average.
    """


@lru_cache(maxsize=65536)
def packed_moments(job: JobCost) -> PackedMoments:
    """Return the moments of `packed_vectors`; the work is in seconds."""
    tokens, work = packed_vectors(job, 0)
    return PackedMoments(
        float(tokens.sum()) / STRATA,
        float(work.sum()) / STRATA,
        float(work.min()),
        float(work.max()),
        float(tokens.max() - tokens.min()) >= 4 * ROUNDING,
    )


_MEAN_ROUNDING: Final = (ROUNDING - 1) / 2
"""Tokens that rounding up adds on average where the count is spread over many multiples."""


def _packed_linear(jobs: Sequence[JobCost], floor: float, read: float, rounding_s: float) -> tuple[float, float] | None:
    """Return the packed mean where the time is linear (or constant) over all strata.

    This takes 2 us instead of 20. Returns None elsewhere.
    """
    tokens, work, least, most = 0.0, read, read, read
    spread = False
    for job in jobs:
        moments = packed_moments(job)
        tokens += moments[0]
        work += moments[1]
        least += moments[2]
        most += moments[3]
        spread = spread or moments[4]
    if not spread:
        return None
    if least >= floor:
        return work + _MEAN_ROUNDING * rounding_s, tokens + _MEAN_ROUNDING
    if most + ROUNDING * rounding_s <= floor:
        return floor, tokens + _MEAN_ROUNDING
    return None


@lru_cache(maxsize=2048)
def padded_vector(job: JobCost) -> Floats:
    """Return log P(longest row of a micro-batch <= g) at g = 8, 16, ..

    The last g is the job's longest length. The array is read-only.
    """
    vector = job.rows * job.lengths.log_cdf_on_grid(job.lengths.longest, ROUNDING)
    vector.flags.writeable = False
    return vector


@lru_cache(maxsize=256)
def _grid(size: int) -> Floats:
    return np.arange(1, size + 1, dtype=np.float64) * ROUNDING


def expected_step(jobs: Sequence[JobCost], fusion: Fusion, seeds: Sequence[int] | None = None) -> ExpectedStep:
    """Return the expected step of jobs of one base that run together.

    Each job takes part with one micro-batch. `seeds` (from the job ids) set the order of each job's
    strata, so that two jobs' lengths are independent; by default they are the positions in `jobs`.
    A job's solo step does not depend on its seed.
    """
    base = jobs[0].base
    floor = base.floor_s + method_floors(jobs)
    fixed = sum([job.step_s for job in jobs])
    real = sum([job.real_tokens for job in jobs])
    if fusion == "packed":
        seconds, computed = _packed(jobs, seeds or range(len(jobs)), floor, base.read_s, base.token_s)
    else:
        seconds, computed = _padded(jobs, floor, base.read_s)
    return ExpectedStep(seconds + fixed, computed, real)


def _packed(
    jobs: Sequence[JobCost], seeds: Sequence[int], floor: float, read: float, rounding_s: float
) -> tuple[float, float]:
    if len(jobs) == 1:
        tokens, work = packed_vectors(jobs[0], 0)
    else:
        linear = _packed_linear(jobs, floor, read, rounding_s)
        if linear is not None:
            return linear
        total = np.zeros((2, STRATA))
        for job, seed in zip(jobs, seeds, strict=True):
            total += packed_vectors(job, seed % ORDERS)
        tokens, work = total
    # Strata are conditional means, not whole numbers: with half a token less, rounding costs what
    # it costs for whole ones. The arithmetic is in place and by add.reduce, because mean() and
    # sum() go through Python (a tenth of a run).
    computed = tokens - _HALF
    computed /= ROUNDING
    np.ceil(computed, out=computed)
    computed *= ROUNDING
    seconds = computed - tokens
    seconds *= rounding_s
    seconds += work
    seconds += read
    np.maximum(seconds, floor, out=seconds)
    return float(np.add.reduce(seconds)) / STRATA, float(np.add.reduce(computed)) / STRATA


def _padded(jobs: Sequence[JobCost], floor: float, read: float) -> tuple[float, float]:
    vectors = [padded_vector(job) for job in jobs]
    size = max(map(len, vectors))
    log_cdf = np.zeros(size)
    for vector in vectors:
        log_cdf[: len(vector)] += vector
    cdf = np.exp(log_cdf)
    mass = np.diff(cdf, prepend=0.0)
    grid = _grid(size)
    rows = sum(job.rows for job in jobs)
    per_token = sum(job.rows * job.token_s for job in jobs)
    per_square = sum(job.rows * job.square_s for job in jobs)
    seconds = np.maximum(grid * (per_token + per_square * grid) + read, floor)
    return float(mass @ seconds), rows * float(mass @ grid)

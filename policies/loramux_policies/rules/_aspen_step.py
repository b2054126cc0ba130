"""This module chooses who is in the next fused step of one device under the `aspen` rule.

It follows arXiv 2312.02515 section 4.2. All functions are pure functions of the
device view. Orders are total: time waited (starved jobs only), priority descending, p_stop
descending, arrival, id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from math import ceil
from typing import Final

from loramux_policies.rule_helpers import halved
from loramux_policies.views import DeviceView, FusedStep, ReadyJob
from loramux_profiles.work import ROUNDING

LEAST_PATIENCE: Final = 16

Fits = Callable[[Iterable[ReadyJob]], bool]


def patience(residents: int, k: int) -> int:
    """Return W: a job that has waited this many steps is starved and goes first."""
    return max(LEAST_PATIENCE, 4 * ceil(residents / k))


def adaptive_step(device: DeviceView, k: int, percent: float, budget_tokens: float) -> FusedStep:
    """Choose the starved jobs first and then, class by class, the jobs that pad least.

    The classes choose from the first `percent` of the order of the jobs that are not starved.
    """
    ready = device.ready
    fits: Fits = _always if device.everyone() is not None else device.fits
    limit = patience(device.n_residents, k)
    taken: list[ReadyJob] = []
    starved = [job for job in ready if job.waited >= limit]
    if starved:
        starved.sort(key=lambda job: (-job.waited, *_rank(job)))
        if not fits(starved[:1]):
            return halved(device, starved[0])
        for job in starved:
            if len(taken) < k and fits([*taken, job]):
                taken.append(job)
        if len(taken) == k:
            return device.step(taken)
    others = sorted([job for job in ready if job.waited < limit], key=_rank)
    if not taken and not fits(others[:1]):
        return halved(device, others[0])
    others = others[: max(1, ceil(round(len(others) * percent / 100.0, 9)))]
    if not device.padded and budget_tokens <= 0.0:
        budget_tokens = k * sum(job.tokens for job in ready) / len(ready)
    for _, members in groupby(others, key=lambda job: job.priority):
        pool = list(members)
        while len(taken) < k:
            if fits is not _always:
                pool = [job for job in pool if fits([*taken, job])]
            if not pool:
                break
            r = min(k - len(taken), len(pool))
            chosen = pool if r == len(pool) and fits([*taken, *pool]) else None
            if chosen is None:
                choices = _by_longest(taken, pool, r, fits) if device.padded else _by_tokens(taken, pool, r, fits)
                chosen = min(choices, key=lambda jobs: _score(device, [*taken, *jobs], budget_tokens))
            taken.extend(chosen)
            pool = [job for job in pool if job not in chosen]
        if len(taken) == k:
            break
    return device.step(taken)


def _always(_: Iterable[ReadyJob]) -> bool:
    """Return True: the memory holds all residents, and so it holds any of them."""
    return True


def _rank(job: ReadyJob) -> tuple[int, float, float, str]:
    return (-job.priority, -job.p_stop, job.submit_s, job.job_id)


def _by_longest(taken: list[ReadyJob], pool: list[ReadyJob], r: int, fits: Fits) -> list[list[ReadyJob]]:
    """Return, for each possible longest row, the r jobs that fit and pad least.

    The padding of a job is rows * (longest - own longest). The jobs must fit beside those already
    taken; fewer than r are returned where no more fit.
    """
    choices = []
    for longest in sorted({job.longest for job in pool}):
        below = [job for job in pool if job.longest <= longest]
        if len(below) < r and fits is _always:
            continue  # another choice has r jobs, and the most jobs win
        below.sort(key=lambda job: job.rows * (longest - job.longest))  # stable: ties stay in order
        choices.append(_first(taken, below, r, fits))
    return choices


def _by_tokens(taken: list[ReadyJob], pool: list[ReadyJob], r: int, fits: Fits) -> list[list[ReadyJob]]:
    """Return, for packed steps, every run of r neighbours in the order of their tokens.

    Nothing pads in a packed step. Of each run as many jobs are taken as fit.
    """
    ordered = sorted(pool, key=lambda job: job.tokens)
    return [_first(taken, ordered[i:], r, fits) for i in range(len(ordered) - r + 1)]


def _first(taken: list[ReadyJob], jobs: list[ReadyJob], r: int, fits: Fits) -> list[ReadyJob]:
    chosen = jobs[:r]
    if fits([*taken, *chosen]):
        return chosen
    chosen = []
    for job in jobs:
        if len(chosen) < r and fits([*taken, *chosen, job]):
            chosen.append(job)
    return chosen


def _score(
    device: DeviceView, jobs: list[ReadyJob], budget_tokens: float
) -> tuple[int, float, int, list[tuple[float, str]]]:
    """Return the key by which choices are compared; the smallest key is the best choice.

    It prefers most jobs, then least waste (padding; packed: distance to the budget), most waiting,
    earliest arrival, and the id.
    """
    tokens = sum([job.tokens for job in jobs])
    if device.padded:
        longest = max([job.longest for job in jobs])
        waste = float(sum([job.rows for job in jobs]) * (-(-longest // ROUNDING) * ROUNDING) - tokens)
    else:
        waste = abs(tokens - budget_tokens)
    waiting = sum([job.waited for job in jobs])
    return (-len(jobs), waste, -waiting, sorted((job.submit_s, job.job_id) for job in jobs))

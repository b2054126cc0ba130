"""This module recommends what to run on a device.

It finds the largest micro-batch, recompute or not, how many jobs share the device, and where fusing
stops paying. Memory is the upper bound that admission goes by (`CostModel.upper_bytes`), time the
expected fused step. One job means as many copies of it as one likes; several mean those jobs.
Nothing is trained, and no torch is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from loramux_profiles.advice import advice
from loramux_profiles.cost import CostModel, DoesNotFit
from loramux_profiles.devices import DeviceProfile, Origin
from loramux_profiles.recommendation import PAYS, Alone, Packing, Recommendation
from loramux_profiles.work import JobCost
from loramux_traces.job import JobSpec

MAX_JOBS: Final = 1024
"""Most copies of one job that are looked at."""
LOOK_AHEAD: Final = 8
"""Micro-batches that are tried beyond the first that does not fit.

Rounding to 8 tokens makes the bytes of short rows not quite monotone.
"""
TIME_CONSTANTS: Final = (
    *("peak_flops", "memory_bandwidth", "eta_g", "eta_a", "eta_l", "activation_passes", "weight_passes"),
    *("c0", "c1", "c2"),
)


def largest_micro_batch(model: CostModel, spec: JobSpec) -> int:
    """Return the rows of a job's largest micro-batch that fits the empty device.

    The upper bound says what fits. The rows are at most the job's batch (or the micro-batch that it
    asks for); 0 where not even one row fits.
    """

    def fits(rows: int) -> bool:
        return model.micro_batch(replace(spec, micro_batch_size=rows)) == rows

    return most_that(fits, spec.micro_batch_size or spec.batch_size, LOOK_AHEAD)


def most_that(fits: Callable[[int], bool], limit: int, look_ahead: int = 0) -> int:
    """Return the largest n from 1 to `limit` that fits, or 0 for none.

    What fits is taken to be 1 to n, but `look_ahead` further numbers are tried beyond a gap.
    """
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, high * 2
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    beyond = [n for n in range(low + 2, min(limit, low + look_ahead) + 1) if low and fits(n)]
    return max(beyond, default=low)


def recommend(
    device: DeviceProfile,
    specs: Sequence[JobSpec],
    *,
    folder: str = "",
    max_jobs: int | None = None,
    recompute: bool = False,
) -> Recommendation:
    """Return what to run on a device.

    `folder`: where relative paths of models start. `max_jobs`: most jobs on the device at a time.
    `recompute`: it is decided already, in favour; else it is part of the advice. Raises
    UsageError for an unknown model or one that the device's record does not cover.
    """
    model = CostModel(device, planned=True, folder=folder)
    seats = MAX_JOBS if max_jobs is None else min(max_jobs, MAX_JOBS)
    modes = (True,) if recompute else (False, True)
    alone = tuple(_alone(model, replace(spec, recompute=r)) for spec in specs for r in modes)
    copies = len(specs) == 1
    found: dict[bool, list[Packing]] = {False: [], True: []}
    for r in modes:
        found[r] = _frontier(model, [replace(spec, recompute=r) for spec in specs], seats)
    frontier = tuple(row for r in (False, True) for row in found[r])
    most = {r: max((row.jobs for row in found[r]), default=0) for r in (False, True)}
    best_of = {r: _best(found[r], copies) for r in (False, True)}
    fitting = {r: {one.job_id for one in alone if one.recompute is r and one.largest} for r in (False, True)}
    never = tuple(spec.job_id for spec in specs if spec.job_id not in fitting[False] | fitting[True])
    verdict = _verdict(best_of[False], best_of[True], copies, bool(fitting[True] - fitting[False]))
    if recompute and best_of[True] is not None:
        verdict = "as asked"
    best = best_of[verdict in ("needed", "worthwhile", "as asked")]
    held = set() if best is None else set(best.job_ids)
    left_out = tuple(spec.job_id for spec in specs if spec.job_id not in held and spec.job_id not in never)
    bases = {cost.base.key: cost.base for cost in map(model.job_cost, specs)}
    constants = device.origins()
    time_origin: Origin = "fitted" if model.fitted is not None else _weakest([constants[n] for n in TIME_CONSTANTS])
    result = Recommendation(
        device=device.name,
        models=tuple(dict.fromkeys(spec.base_model for spec in specs)),
        capacity_bytes=model.capacity_bytes,
        weight_bytes=sum(base.weights_bytes for base in bases.values()),
        margin=model.upper_margin,
        memory_origin="fitted" if model.fitted is not None else "assumed",
        time_origin=time_origin,
        copies=copies,
        alone=alone,
        frontier=frontier,
        best=best,
        most=most,
        capped={r: copies and most[r] == seats for r in (False, True)},
        recompute=verdict,
        never=never,
        left_out=left_out,
        notes=_notes(model, frontier, specs),
        advice="",
    )
    return replace(result, advice=advice(result, specs))


def _weakest(origins: Sequence[Origin]) -> Origin:
    order: tuple[Origin, ...] = ("assumed", "fitted", "measured")
    return min(origins, key=order.index)


def _alone(model: CostModel, spec: JobSpec) -> Alone:
    largest = largest_micro_batch(model, spec)
    chosen = model.micro_batch(spec)
    cost = model.job_cost(replace(spec, micro_batch_size=max(1, largest)))
    return Alone(
        job_id=spec.job_id,
        recompute=spec.recompute,
        largest=largest,
        chosen=0 if isinstance(chosen, DoesNotFit) else chosen,
        own_bytes=cost.own_bytes,
        need_bytes=int(model.upper_bytes((cost,))),
        tokens_per_s=cost.real_tokens / cost.solo_step_s if largest else 0.0,
    )


def _frontier(model: CostModel, specs: Sequence[JobSpec], max_jobs: int) -> list[Packing]:
    """Return packings of jobs of one recompute mode.

    For every level of micro-batches there are packings of 1, 2, 4, ... jobs, and of the most.
    """
    rows: list[Packing] = []
    usable = [(spec, largest) for spec in specs if (largest := largest_micro_batch(model, spec))]
    for sizes in _levels([(spec.micro_batch_size or spec.batch_size, largest) for spec, largest in usable]):
        costs = [
            (spec.job_id, model.job_cost(replace(spec, micro_batch_size=size)))
            for (spec, _), size in zip(usable, sizes, strict=True)
        ]
        rows += _ladder(model, costs * max_jobs if len(specs) == 1 else _lightest_first(model, costs), max_jobs)
    return rows


def _levels(jobs: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Return the micro-batches to look at, of all jobs at once.

    The first are the largest that fit alone, then come batch / 2^i, down to one row.
    """
    if not jobs:
        return []
    levels = [tuple(largest for _, largest in jobs)]
    i = 0
    while max(levels[-1]) > 1:
        levels.append(tuple(min(largest, max(1, start >> i)) for start, largest in jobs))
        i += 1
    return list(dict.fromkeys(levels))


def _lightest_first(model: CostModel, costs: Sequence[tuple[str, JobCost]]) -> list[tuple[str, JobCost]]:
    return sorted(costs, key=lambda one: (one[1].own_bytes + (1 + model.upper_margin) * one[1].dynamic_q, one[0]))


def _ladder(model: CostModel, jobs: Sequence[tuple[str, JobCost]], max_jobs: int) -> list[Packing]:
    """Return packings of the first 1, 2, 4, ... of the jobs, and of as many as fit and may be.

    Past a job that does not fit, the others are tried too.
    """

    def fits(some: Sequence[tuple[str, JobCost]]) -> bool:
        return model.upper_bytes([cost for _, cost in some]) <= model.capacity_bytes

    most = most_that(lambda n: fits(jobs[:n]), min(len(jobs), max_jobs))
    chosen = list(jobs[:most])
    if len({id(cost) for _, cost in jobs}) > 1:
        for one in jobs[most + 1 :]:
            if len(chosen) < max_jobs and fits([*chosen, one]):
                chosen.append(one)
    counts = {1 << i for i in range(len(chosen).bit_length()) if 1 << i <= len(chosen)} | {len(chosen)}
    return [_packing(model, chosen[:n]) for n in sorted(counts) if n]


def _packing(model: CostModel, jobs: Sequence[tuple[str, JobCost]]) -> Packing:
    costs = [cost for _, cost in jobs]
    groups: dict[str, list[JobCost]] = {}
    for cost in costs:
        groups.setdefault(cost.base.key, []).append(cost)
    seconds = real = 0.0
    for group in groups.values():  # bases take turns
        step = model.expected_step(group)
        seconds += step.seconds
        real += step.real_tokens
    upper = model.upper_bytes(costs)
    largest = max(sum(cost.tokens_q for cost in group) for group in groups.values())
    return Packing(
        job_ids=tuple(job_id for job_id, _ in jobs),
        micro_batches=tuple(cost.rows for cost in costs),
        recompute=any(cost.recompute for cost in costs),
        expected_bytes=int(model.expected_bytes(costs)),
        upper_bytes=int(upper),
        headroom_bytes=model.capacity_bytes - int(upper),
        step_s=seconds,
        tokens_per_s=real / seconds if seconds > 0 else 0.0,
        trusted=model.fitted is None or largest <= model.fitted.trusted_tokens,
    )


def _best(rows: Sequence[Packing], copies: bool) -> Packing | None:
    """Return the best of these packings; sizes that were measured go first.

    Of copies it is the fewest jobs, then the least memory, within PAYS of the most tokens/s. Of
    different jobs it is the most jobs, then the most tokens/s.
    """
    trusted = [row for row in rows if row.trusted] or list(rows)
    if not trusted:
        return None
    if not copies:
        return max(trusted, key=lambda row: (row.jobs, row.tokens_per_s, -row.upper_bytes))
    enough = max(row.tokens_per_s for row in trusted) / (1 + PAYS)
    good = [row for row in trusted if row.tokens_per_s >= enough]
    return min(good, key=lambda row: (row.jobs, row.upper_bytes))


def _verdict(without: Packing | None, with_it: Packing | None, copies: bool, helps_a_job: bool) -> str:
    if without is None:
        return "impossible" if with_it is None else "needed"
    if with_it is None:
        return "not worthwhile"
    if not copies and with_it.jobs != without.jobs:
        if with_it.jobs < without.jobs:
            return "not worthwhile"
        return "needed" if helps_a_job else "worthwhile"
    return "worthwhile" if with_it.tokens_per_s > (1 + PAYS) * without.tokens_per_s else "not worthwhile"


def _notes(model: CostModel, frontier: Sequence[Packing], specs: Sequence[JobSpec]) -> tuple[str, ...]:
    notes = []
    if model.fitted is None:
        notes.append(
            f"nothing was measured on {model.device.name}: memory is the allocation plan of the packed runtime plus "
            f"{model.upper_margin:.0%} of its dynamic part, times are the prior's"
        )
    elif not all(row.trusted for row in frontier):
        notes.append(
            f"steps above {model.fitted.trusted_tokens:,.0f} tokens are larger than any that was measured; "
            "none of them is advised where a smaller one fits"
        )
    if any(spec.num_gpus > 1 for spec in specs):
        notes.append("jobs on several devices are counted as on this one")
    return tuple(notes)

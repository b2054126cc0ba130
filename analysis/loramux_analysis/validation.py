"""Compare simulated with real runs, over policies and repeats.

The comparison sets errors beside the noise of the real runs, and the ranking beside the real one.
The real runs of one policy are repeats of each other; every one has simulated twins (its own seed,
or several seeds). Errors are (simulated - real) / real, as fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, permutations
from typing import Any, Final

import numpy as np
import pandas as pd

from loramux_analysis.agreement import kendall_tau, ks_distance, relative_errors, wasserstein
from loramux_analysis.intervals import of_mean
from loramux_analysis.metrics import completed
from loramux_analysis.real import turnarounds
from loramux_traces.arrays import Floats
from loramux_traces.runfolder import Run

MEAN_WITHIN: Final = 0.05
"""Error of a policy's mean turnaround that is always good enough."""
JOBS_WITHIN: Final = 0.15
"""Error of the 90% quantile of single jobs that is always good enough."""


@dataclass(frozen=True, slots=True, eq=False)
class Twin:
    """A Twin is a real run and its simulations."""

    policy: str
    real: Run
    simulated: tuple[Run, ...]
    speed_factor: float | None = None
    """Measured over predicted seconds of the real run's fused steps; None where it recorded none.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyAgreement:
    """A PolicyAgreement says how well simulated and real runs of one policy agree.

    Times are in seconds, errors and spreads are fractions; None where there is nothing to say.
    """

    policy: str
    repeats: int
    """Number of real runs."""
    simulations: int
    jobs: int
    """Jobs that completed in every real run and in every simulation."""
    not_in_all: int
    """Jobs that completed in some of them only."""
    real_mean_s: float
    real_low_s: float | None
    real_high_s: float | None
    """95% interval of the real mean over repeats (Student's t)."""
    simulated_mean_s: float
    mean_error: float
    spread: float | None
    """Half the range of the real repeats' means, over the real mean."""
    interval: float | None
    """Half of the 95% interval, over the real mean: wider than the range where repeats are few."""
    job_error_p50: float | None
    job_error_p90: float | None
    """|error| of single jobs, each real run against its own simulations."""
    job_noise_p50: float | None
    job_noise_p90: float | None
    """The same of each real run against every other: no simulation can be better than this."""
    makespan_error: float | None
    memory_error: float | None
    """Error of the peak memory, where the real runs measured it."""
    ks: float | None
    wasserstein_s: float | None
    """Distances of the distributions of turnaround, repeats and seeds pooled."""

    @property
    def mean_ok(self) -> bool:
        """Whether mean turnaround is within 5% or the spread of the real runs.

        The larger of the two limits counts.
        """
        return abs(self.mean_error) <= max(MEAN_WITHIN, self.spread or 0.0)

    @property
    def jobs_ok(self) -> bool:
        """Whether 90% of the jobs are within 15%, or within what real runs differ by.

        The larger of the two limits counts.
        """
        return (self.job_error_p90 or 0.0) <= max(JOBS_WITHIN, self.job_noise_p90 or 0.0)

    @property
    def same_jobs(self) -> bool:
        """Whether the same jobs completed everywhere."""
        return self.not_in_all == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """A Ranking is the order of the policies by mean turnaround."""

    tau: float | None
    disjoint: tuple[tuple[str, str], ...]
    """Pairs whose real 95% intervals do not meet: those that the real runs have put in an order
    (better first).
    """
    discordant: tuple[tuple[str, str], ...]
    """Those of them that the simulation puts the other way round."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Validation:
    """A Validation is the whole comparison.

    `twins`: what it is of, in the order of `policies`.
    """

    policies: tuple[PolicyAgreement, ...]
    ranking: Ranking
    speed_factor: float | None
    """Measured over predicted seconds of the fused steps of all real runs; above 1, the machine was
    slower than its profile says.
    """
    applied_factor: float
    """What simulated step times were multiplied by."""
    twins: tuple[Twin, ...]

    def missed(self) -> list[str]:
        """Return the criteria that are not met, in words."""
        found = []
        for row in self.policies:
            if not row.jobs:
                found.append(f"{row.policy}: no job completed in all of its runs, nothing can be compared")
                continue
            if not row.mean_ok:
                found.append(f"{row.policy}: mean turnaround is off by {row.mean_error:+.1%}")
            if not row.jobs_ok:
                found.append(f"{row.policy}: one job in ten is off by more than {row.job_error_p90:.1%}")
            if not row.same_jobs:
                found.append(f"{row.policy}: {row.not_in_all} jobs did not complete in every run")
        found += [f"{worse} is simulated as faster than {better}" for better, worse in self.ranking.discordant]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the object of `validate --json`."""
        rows = [
            {**asdict(row), "mean_ok": row.mean_ok, "jobs_ok": row.jobs_ok, "same_jobs": row.same_jobs}
            for row in self.policies
        ]
        return {
            "schema_version": 1,
            "policies": rows,
            "ranking": asdict(self.ranking),
            "speed_factor": self.speed_factor,
            "applied_factor": self.applied_factor,
            "runs": [
                {
                    "path": twin.real.path,
                    "policy": twin.policy,
                    "seed": twin.real.seed,
                    "speed_factor": twin.speed_factor,
                }
                for twin in self.twins
            ],
            "missed": self.missed(),
        }

    def table(self) -> pd.DataFrame:
        """Return a table with one row a policy."""
        return pd.DataFrame(self.to_dict()["policies"])


def validate(twins: Sequence[Twin], *, speed_factor: float | None, applied_factor: float) -> Validation:
    """Compare real runs with their simulations.

    Policies come in order of their real mean turnaround. Raises ValueError for no runs.
    """
    by_policy: dict[str, list[Twin]] = {}
    for twin in twins:
        by_policy.setdefault(twin.policy, []).append(twin)
    if not by_policy:
        raise ValueError("no real runs, nothing to compare")
    found = sorted((_agreement(name, own) for name, own in by_policy.items()), key=lambda row: row.real_mean_s)
    ordered = tuple(twin for row in found for twin in by_policy[row.policy])
    return Validation(
        policies=tuple(found),
        ranking=_ranking(found),
        speed_factor=speed_factor,
        applied_factor=applied_factor,
        twins=ordered,
    )


def _agreement(policy: str, twins: Sequence[Twin]) -> PolicyAgreement:
    reals = [twin.real for twin in twins]
    # Repeats of one seed have one simulation.
    shared = {id(run): run for twin in twins for run in twin.simulated}
    every = [*reals, *shared.values()]
    tables = [completed(run.jobs).set_index("job_id")["turnaround_time"] for run in every]
    common = sorted(set.intersection(*(set(table.index) for table in tables)))
    some = len(set.union(*(set(table.index) for table in tables))) - len(common)
    values = [table.loc[common].to_numpy(dtype=np.float64) for table in tables]
    real, simulated = values[: len(reals)], values[len(reals) :]
    means = np.array([v.mean() for v in real]) if common else np.array([np.nan])
    mean = of_mean(means)
    simulated_mean = float(np.mean([v.mean() for v in simulated])) if common else np.nan
    errors = [turnarounds(run, twin.real) for twin in twins for run in twin.simulated]
    noise = [turnarounds(a, b) for a, b in permutations(reals, 2)]
    pooled = (np.concatenate(simulated), np.concatenate(real)) if common else (np.zeros(0), np.zeros(0))
    job, between = (_quantiles(pairs) for pairs in (errors, noise))
    return PolicyAgreement(
        policy=policy,
        repeats=len(reals),
        simulations=len(simulated),
        jobs=len(common),
        not_in_all=some,
        real_mean_s=mean.mean,
        real_low_s=mean.low if mean.known else None,
        real_high_s=mean.high if mean.known else None,
        simulated_mean_s=simulated_mean,
        mean_error=(simulated_mean - mean.mean) / mean.mean,
        spread=float(np.ptp(means)) / 2 / mean.mean if len(means) > 1 else None,
        interval=(mean.high - mean.low) / 2 / mean.mean if mean.known else None,
        job_error_p50=job[0],
        job_error_p90=job[1],
        job_noise_p50=between[0],
        job_noise_p90=between[1],
        makespan_error=_of_summary(twins, "makespan_s"),
        memory_error=_of_summary([twin for twin in twins if measured_memory(twin.real)], "memory_peak_bytes"),
        ks=ks_distance(*pooled),
        wasserstein_s=wasserstein(*pooled),
    )


def _quantiles(pairs: Sequence[pd.DataFrame]) -> tuple[float | None, float | None]:
    """Return median and 90% quantile of |error| of the jobs of pairs of runs."""
    found = [
        np.abs(relative_errors(pair["simulated_s"].to_numpy(np.float64), pair["real_s"].to_numpy(np.float64)))
        for pair in pairs
    ]
    errors = np.concatenate(found) if found else np.empty(0)
    if not len(errors):
        return None, None
    return float(np.percentile(errors, 50)), float(np.percentile(errors, 90))


def measured_memory(run: Run) -> bool:
    """Say whether the run's memory was read off the device.

    On CPU it is what the model says, and proves nothing.
    """
    said = run.manifest.get("memory_measured")
    return bool(said) if said is not None else "memory_mape" in (run.summary.get("prediction") or {})


def _of_summary(twins: Sequence[Twin], column: str) -> float | None:
    """Return the mean error of a figure of the summaries."""
    pairs = [
        (float(run.summary.get(column) or 0.0), float(twin.real.summary.get(column) or 0.0))
        for twin in twins
        for run in twin.simulated
    ]
    errors = relative_errors(*np.array(pairs, dtype=np.float64).reshape(-1, 2).T)
    return float(errors.mean()) if len(errors) else None


def _ranking(rows: Sequence[PolicyAgreement]) -> Ranking:
    """Rank the policies; `rows` ascend by real mean."""
    disjoint, discordant = [], []
    for better, worse in combinations(rows, 2):
        if better.real_high_s is None or worse.real_low_s is None or better.real_high_s >= worse.real_low_s:
            continue
        disjoint.append((better.policy, worse.policy))
        if better.simulated_mean_s >= worse.simulated_mean_s:
            discordant.append((better.policy, worse.policy))
    means: list[Floats] = [np.array([getattr(row, f"{side}_mean_s") for row in rows]) for side in ("simulated", "real")]
    return Ranking(tau=kendall_tau(*means), disjoint=tuple(disjoint), discordant=tuple(discordant))

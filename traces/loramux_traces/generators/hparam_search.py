"""Make hyper-parameter searches: many equal jobs at once that differ in learning rate and seed.

This is the case that fusing is best at. Searches arrive as a Poisson process; each submits `trials`
jobs of one base model, method, batch size, length and number of steps at one time. A share of the
trials would stop early (`stop_step`, ground truth that only `-oracle` policies see).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from loramux_traces.generators.arrivals import job_id, poisson_arrivals
from loramux_traces.generators.registry import Generator
from loramux_traces.lora_mix import DEFAULT_MIX
from loramux_traces.sampling import exponentials, uniforms


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SearchParams:
    trials: Annotated[int, Field(ge=1, le=100_000, description="jobs of one search, all submitted at once")] = 16
    mean_gap_s: Annotated[float, Field(gt=0, le=1e8, description="mean seconds between two searches")] = 7200.0
    mean_steps: Annotated[float, Field(ge=1, le=1e9, description="mean optimizer steps of a trial")] = 1000.0
    stop_share: Annotated[float, Field(ge=0, le=1, description="share of trials that would stop early")] = 0.0
    lr_low: Annotated[float, Field(gt=0, le=1, description="smallest learning rate")] = 1e-5
    lr_high: Annotated[float, Field(gt=0, le=1, description="largest learning rate")] = 1e-3
    bases: Annotated[str, Field(description="base models name:weight,... instead of the default mix")] = ""
    methods: Annotated[str, Field(description="methods name:weight,... instead of the default mix")] = ""


def build(params: SearchParams, n: int, seed: int) -> tuple[list[dict[str, Any]], str]:
    """Return rows of `n` jobs, the last search cut short if need be.

    Job i depends on (seed, i) alone.
    """
    searches = -(-n // params.trials)
    # The first search is at 0, so that a trace of one search needs no waiting.
    starts = poisson_arrivals(seed, searches, 1 / params.mean_gap_s)
    submit = (starts - starts[0]).tolist()
    steps = (exponentials(seed, "steps", searches) * params.mean_steps).round().clip(1, None).tolist()
    mix = DEFAULT_MIX.with_shares(base_models=params.bases, methods=params.methods).draw(seed, searches)
    lr = (params.lr_low * (params.lr_high / params.lr_low) ** uniforms(seed, "lr", n)).tolist()
    stops = uniforms(seed, "stops", n).tolist()
    where = uniforms(seed, "stop-step", n).tolist()
    rows = []
    for i in range(n):
        search, trial = divmod(i, params.trials)
        row: dict[str, Any] = {
            "job_id": job_id(i),
            "submit_s": submit[search],
            "total_steps": steps[search],
            "user": f"u{search % 8:02d}",
            "group": f"search-{search:05d}",
            "lr": lr[i],
            "seed": trial,
            **mix[search],
        }
        if stops[i] < params.stop_share:
            row["stop_step"] = max(1.0, float(round(steps[search] * where[i])))
        rows.append(row)
    return rows, f"{searches} hyper-parameter search(es) of {params.trials} equal jobs; every column is drawn."


GENERATOR: Final = Generator(
    "hparam-search",
    "hyper-parameter searches: many equal jobs at once, differing in learning rate",
    SearchParams,
    build,
)

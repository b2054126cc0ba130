"""Make ASPEN's evaluation workload: eight LoRA jobs on LLaMA-7B, all submitted at once.

{34,000 and 17,000 Alpaca rows, 5,556 and 2,700 Spider (SQL) rows} x two learning rates (arXiv
2312.02515). Rows are published; the learning rates and the mean lengths are not. Our lengths are
set so that one epoch has the 28.15 million non-pad tokens which the published hours and effective
rates agree on (27.73 h x 282 tok/s, and within .3% for M1, M2 and M3); how they split between
Alpaca and SQL is assumed.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from loramux_traces.errors import UsageError
from loramux_traces.generators.registry import Generator

#: (name, rows, length distribution)
DATASETS: Final = (
    ("alpaca-34k", 34_000, "alpaca"),
    ("alpaca-17k", 17_000, "alpaca"),
    ("spider-5k6", 5_556, "sql"),
    ("spider-2k7", 2_700, "sql"),
)


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class AspenParams:
    base_model: Annotated[str, Field(description="base model of every job")] = "llama-7b"
    batch_size: Annotated[int, Field(ge=1, le=65536, description="sequences per optimizer step")] = 4
    epochs: Annotated[float, Field(gt=0, le=1e4, description="passes over the rows")] = 1.0
    alpaca_len: Annotated[float, Field(ge=1, le=65536, description="mean tokens of an Alpaca row")] = 200.0
    sql_len: Annotated[float, Field(ge=1, le=65536, description="mean tokens of a Spider row")] = 470.0
    lr_low: Annotated[float, Field(gt=0, le=1, description="first learning rate")] = 1e-4
    lr_high: Annotated[float, Field(gt=0, le=1, description="second learning rate")] = 3e-4


def build(params: AspenParams, n: int, seed: int) -> tuple[list[dict[str, Any]], str]:
    """Return rows of the first `n` of the eight jobs.

    The seed becomes the seed of the jobs themselves and changes nothing else.
    """
    lengths = {"alpaca": params.alpaca_len, "sql": params.sql_len}
    rows = [
        {
            "job_id": f"{name}-lr{i}",
            "submit_s": 0.0,
            "base_model": params.base_model,
            "method": "lora",
            "batch_size": params.batch_size,
            "micro_batch_size": params.batch_size,
            "seq_len": lengths[dist],
            "num_samples": samples,
            "epochs": params.epochs,
            "user": "aspen",
            "dataset": name.partition("-")[0],
            "length_dist": dist,
            "lr": lr,
            "seed": seed,
        }
        for i, lr in enumerate((params.lr_low, params.lr_high), start=1)
        for name, samples, dist in DATASETS
    ]
    if n > len(rows):
        raise UsageError(f"aspen-8 has {len(rows)} jobs, not {n}: leave --jobs out")
    return rows[:n], "ASPEN's 8-job workload (rows as published; learning rates and mean lengths assumed)."


GENERATOR: Final = Generator(
    "aspen-8", "ASPEN's workload: 8 LoRA jobs at once, Alpaca and Spider x two learning rates", AspenParams, build, 8
)

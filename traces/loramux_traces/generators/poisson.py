"""Make Poisson arrivals with sizes of a chosen law.

These are the traces that the closed forms of queueing theory speak about: one base model, one GPU a
job, sizes in `duration_s` with full float precision; `mem_bytes` classes for loss models.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass as validated

from loramux_traces.generators.arrivals import SizeLaw, job_id, poisson_arrivals, rate_for, sizes
from loramux_traces.generators.registry import Generator
from loramux_traces.lora_mix import parse_shares
from loramux_traces.sampling import pick, uniforms

_UNITS: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?(?:[eE][0-9]+)?)\s*([A-Za-z]*)")


def parse_bytes(text: str) -> int:
    """Return `24GiB`, `10 GB` or `1024` as a number of bytes.

    Raises ValueError for a text that is no size in bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or not 1 <= float(match[1]) * unit <= 2**53:
        raise ValueError(f"{text[:80]!r} is no size in bytes (at most 8 PiB), such as 1024, 24GiB or 10GB")
    return round(float(match[1]) * unit)


def memory_classes(text: str) -> list[tuple[int, float]]:
    """Return `6GiB:3,10GiB:2` as [(bytes, weight), ...]."""
    return [(parse_bytes(size), weight) for size, weight in parse_shares(text)]


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PoissonParams:
    sizes: Annotated[SizeLaw, Field(description="law of the sizes")] = "exp"
    mean_s: Annotated[float, Field(ge=1e-6, le=1e8, description="mean size in seconds")] = 1.0
    rho: Annotated[float, Field(gt=0, le=1e6, description="load per server: rate x mean_s / servers")] = 0.8
    servers: Annotated[int, Field(ge=1, le=10**6, description="devices that the load is meant for")] = 1
    rate: Annotated[float | None, Field(gt=0, le=1e9, description="arrivals per second, instead of rho")] = None
    scv: Annotated[float | None, Field(gt=0, le=1e4, description="variance of the sizes over the squared mean")] = None
    mem_bytes: Annotated[str, Field(description="memory classes bytes:weight,... (suffixes GiB, GB, ...)")] = ""
    base_model: Annotated[str, Field(description="base model of every job")] = "llama-7b"
    method: Annotated[str, Field(description="method of every job")] = "lora"
    batch_size: Annotated[int, Field(ge=1, le=65536, description="sequences per optimizer step")] = 8
    seq_len: Annotated[float, Field(ge=1, le=1_048_576, description="mean tokens per sequence")] = 512.0

    @field_validator("mem_bytes")
    @classmethod
    def _classes(cls, value: str) -> str:
        if value:
            memory_classes(value)
        return value


def build(params: PoissonParams, n: int, seed: int) -> tuple[list[dict[str, Any]], str]:
    """Return rows of `n` jobs; job i depends on (seed, i) alone."""
    rate = params.rate or rate_for(params.rho, params.servers, params.mean_s)
    submit = poisson_arrivals(seed, n, rate).tolist()
    duration = sizes(params.sizes, params.mean_s, params.scv, seed, n).tolist()
    fixed = {
        "base_model": params.base_model,
        "method": params.method,
        "batch_size": params.batch_size,
        "seq_len": params.seq_len,
    }
    rows: list[dict[str, Any]] = [
        {"job_id": job_id(i), "submit_s": submit[i], "duration_s": duration[i], **fixed} for i in range(n)
    ]
    if params.mem_bytes:
        for row, size in zip(rows, pick(uniforms(seed, "memory", n), memory_classes(params.mem_bytes)), strict=True):
            row["mem_bytes"] = size
    load = rate * params.mean_s / params.servers
    return rows, (
        f"Poisson arrivals of {rate:.6g}/s, {params.sizes} sizes of mean {params.mean_s:.6g} s "
        f"(load {load:.4g} of {params.servers} device(s)); every column is drawn."
    )


GENERATOR: Final = Generator(
    "poisson",
    "Poisson arrivals x exp, deterministic, hyperexp, lognormal, uniform or pareto sizes",
    PoissonParams,
    build,
)

"""What `recommend` finds out about a device and some jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from loramux_profiles.devices import Origin

PAYS: Final = 0.05
"""More jobs pay where they add more than this share of tokens/s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """Describes one job alone on the device."""

    job_id: str
    recompute: bool
    largest: int
    """Largest micro-batch that fits, at most the batch size; 0 where not even one row fits."""
    chosen: int
    """Micro-batch that training takes where none is asked for.

    It is the largest batch_size / 2^i that fits; 0 for none.
    """
    own_bytes: int
    """Bytes of adapter, gradients and moments."""
    need_bytes: int
    """Upper bound at `largest`, or of one row where none fits."""
    tokens_per_s: float
    """Tokens per second at `largest`; 0 where none fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Describes jobs that share the device, with a micro-batch of each in every step."""

    job_ids: tuple[str, ...]
    """Ids of the jobs; for copies of one job, its id as often."""
    micro_batches: tuple[int, ...]
    recompute: bool
    expected_bytes: int
    upper_bytes: int
    headroom_bytes: int
    step_s: float
    tokens_per_s: float
    trusted: bool
    """Whether steps of this size were measured (True where nothing was)."""

    @property
    def jobs(self) -> int:
        """Return the number of jobs that share the device."""
        return len(self.job_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """Holds everything that `loramux recommend` says."""

    device: str
    models: tuple[str, ...]
    capacity_bytes: int
    weight_bytes: int
    """Weights of all bases together."""
    margin: float
    memory_origin: Origin
    time_origin: Origin
    copies: bool
    """Whether this is about one job and copies of it."""
    alone: tuple[Alone, ...]
    """Each job without and with recompute."""
    frontier: tuple[Packing, ...]
    best: Packing | None
    """The packing that is advised."""
    most: dict[bool, int]
    """Most jobs that share the device, by recompute."""
    capped: dict[bool, bool]
    """Whether `most` is where the search ended, and not where memory ended."""
    recompute: str
    """One of needed, worthwhile, not worthwhile, as asked, or impossible (nothing fits)."""
    never: tuple[str, ...]
    """Jobs of which not one row fits, not even with recompute."""
    left_out: tuple[str, ...]
    """Jobs that fit alone but not beside those of `best`."""
    notes: tuple[str, ...]
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """Return the recommendation as JSON holds it."""
        return {
            "device": self.device,
            "models": list(self.models),
            "capacity_bytes": self.capacity_bytes,
            "weight_bytes": self.weight_bytes,
            "margin": self.margin,
            "memory_origin": self.memory_origin,
            "time_origin": self.time_origin,
            "alone": [
                {
                    "job_id": one.job_id,
                    "recompute": one.recompute,
                    "largest_micro_batch": one.largest,
                    "chosen_micro_batch": one.chosen,
                    "own_bytes": one.own_bytes,
                    "need_bytes": one.need_bytes,
                    "tokens_per_s": one.tokens_per_s,
                }
                for one in self.alone
            ],
            "frontier": [packing_dict(packing) for packing in self.frontier],
            "best": None if self.best is None else packing_dict(self.best),
            "most_jobs": {"without_recompute": self.most[False], "with_recompute": self.most[True]},
            "most_jobs_is_limit_of_search": {
                "without_recompute": self.capped[False],
                "with_recompute": self.capped[True],
            },
            "recompute": self.recompute,
            "never_fit": list(self.never),
            "left_out": list(self.left_out),
            "notes": list(self.notes),
            "advice": self.advice,
        }


def packing_dict(packing: Packing) -> dict[str, Any]:
    """Return a row of the frontier as JSON holds it."""
    return {
        "jobs": packing.jobs,
        "job_ids": sorted(set(packing.job_ids)),
        "micro_batches": list(packing.micro_batches),
        "recompute": packing.recompute,
        "expected_bytes": packing.expected_bytes,
        "upper_bytes": packing.upper_bytes,
        "headroom_bytes": packing.headroom_bytes,
        "step_s": packing.step_s,
        "tokens_per_s": packing.tokens_per_s,
        "trusted": packing.trusted,
    }

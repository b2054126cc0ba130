"""A step point is one fused step in plain numbers, without torch.

Memory and time models are measured at it and asked about it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

METHODS: Final = ("lora", "mixlora", "mola", "loramoe", "dynmole")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPoint:
    """Holds what of an adapter decides memory and time.

    The rest keeps its method's defaults.
    """

    method: str
    rank: int
    """Rank of one expert; of MixLoRA's attention adapters too."""
    experts: int | tuple[int, ...] = 1
    """One number, or one per group of layers (MoLA); 1 for LoRA."""
    top_k: int = 1
    """Experts that a token goes through; for DynMoLE keep_top_k."""
    targets: str = "all-linear"
    """all-linear, attention, mlp or qv (MixLoRA: all-linear, or mlp for experts alone)."""
    dropout: bool = True
    dora: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is none of {', '.join(METHODS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPoint:
    """Holds one job's share of the step."""

    adapter: AdapterPoint
    lengths: tuple[int, ...]
    """Tokens of each row."""
    labels: int
    """Positions that are learned, of all rows; logits are computed for them.

    They are at most the tokens less one per row.
    """

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError("a job needs at least one row, and a row at least one token")
        if not 0 <= self.labels <= self.tokens - len(self.lengths):
            raise ValueError(f"{self.labels} labels in {len(self.lengths)} rows of {self.tokens} tokens")

    @property
    def tokens(self) -> int:
        """Return the number of tokens of all rows."""
        return sum(self.lengths)

    @property
    def squares(self) -> int:
        """Return the sum of the squared lengths."""
        return sum(n * n for n in self.lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPoint:
    """Describes a fused step of one base model."""

    jobs: tuple[JobPoint, ...]
    recompute: bool = False

    @property
    def tokens(self) -> int:
        """Return the number of real tokens of all jobs."""
        return sum(job.tokens for job in self.jobs)

    def to_dict(self) -> dict[str, Any]:
        """Return the step as JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> StepPoint:
        """Return the step that `to_dict` gave as this data.

        Raises ValueError, TypeError or KeyError where the data is no step.
        """
        jobs = []
        for job in data["jobs"]:
            adapter = dict(job["adapter"])
            experts = adapter.get("experts", 1)
            if isinstance(experts, list):
                adapter["experts"] = experts = tuple(experts)
            shares = experts if isinstance(experts, tuple) else (experts,)
            numbers = (adapter["rank"], adapter.get("top_k", 1), job["labels"], *shares, *job["lengths"])
            switches = (adapter.get("dropout", True), adapter.get("dora", False), data["recompute"])
            for kind, values in ((int, numbers), (bool, switches)):  # a JSON true is no number, nor is "5"
                if wrong := [value for value in values if type(value) is not kind]:
                    raise TypeError(f"{wrong[0]!r} must be {'a whole number' if kind is int else 'true or false'}")
            jobs.append(JobPoint(adapter=AdapterPoint(**adapter), lengths=tuple(job["lengths"]), labels=job["labels"]))
        return cls(jobs=tuple(jobs), recompute=data["recompute"])

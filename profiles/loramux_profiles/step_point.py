"""One fused step in plain numbers: what memory and time models are measured at and asked about. No torch in here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

METHODS: Final = ("lora", "mixlora", "mola", "loramoe", "dynmole")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPoint:
    """What of an adapter decides memory and time; the rest keeps its method's defaults."""

    method: str
    rank: int
    """Of one expert; of MixLoRA's attention adapters too."""
    experts: int | tuple[int, ...] = 1
    """One number, or one per group of layers (MoLA); 1 for LoRA."""
    top_k: int = 1
    """Experts a token goes through; DynMoLE's keep_top_k."""
    targets: str = "all-linear"
    """all-linear, attention, mlp or qv (MixLoRA: all-linear, or mlp for experts alone)."""
    dropout: bool = True
    dora: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is none of {', '.join(METHODS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPoint:
    """One job's share of the step."""

    adapter: AdapterPoint
    lengths: tuple[int, ...]
    """Tokens of each row."""
    labels: int
    """Positions that are learned, of all rows: what logits are computed for. At most the tokens
    less one per row.
    """

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError("a job needs at least one row, and a row at least one token")
        if not 0 <= self.labels <= self.tokens - len(self.lengths):
            raise ValueError(f"{self.labels} labels in {len(self.lengths)} rows of {self.tokens} tokens")

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(self.lengths)

    @property
    def squares(self) -> int:
        """Sum of the squared lengths."""
        return sum(n * n for n in self.lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPoint:
    """A fused step of one base model."""

    jobs: tuple[JobPoint, ...]
    recompute: bool = False

    @property
    def tokens(self) -> int:
        """Real tokens of all jobs."""
        return sum(job.tokens for job in self.jobs)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> StepPoint:
        """What `to_dict` gave. ValueError, TypeError or KeyError where it is none."""
        jobs = []
        for job in data["jobs"]:
            adapter = dict(job["adapter"])
            if isinstance(adapter.get("experts"), list):
                adapter["experts"] = tuple(adapter["experts"])
            jobs.append(JobPoint(adapter=AdapterPoint(**adapter), lengths=tuple(job["lengths"]), labels=job["labels"]))
        return cls(jobs=tuple(jobs), recompute=data["recompute"])

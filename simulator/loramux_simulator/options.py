"""Define what can be chosen about a simulation, in one frozen record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from loramux_profiles.memory import Fusion
from loramux_traces.errors import UsageError

Fidelity = Literal["rate", "step"]
MultiGpu = Literal["gang", "drop"]
RowOrder = Literal["shuffled", "sorted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimOptions:
    """SimOptions are the options of one simulated run.

    Raises UsageError on a value or combination that has no meaning.
    """

    fusion: Fusion = "packed"
    """`packed`: no padding (the runtime's way); `padded`: rows padded to the longest of the step
    (ASPEN's).
    """
    fidelity: Fidelity = "rate"
    """`rate`: constant rates between events; `step`: every fused step is an event."""
    max_resident: int | None = None
    """Seats per device; None: as many as memory and the policy allow."""
    ideal: bool = False
    """No charges, exact predictions, no memory limit but the trace's mem_bytes: the setting of the
    closed forms.
    """
    speedup_curve: str | None = None
    """Replaces the step-time model by an aggregate rate: none, free, linear:SLOPE,MAX, or a CSV
    file n,phi.
    """
    seed: int = 0
    prediction_error: float = 0.0
    """Sigma of the lognormal factor on every job's predicted length. It also adds to the sigma of
    early-stop predictions (`predictions.EARLY_STOP_SIGMA`), which becomes the root of the sum of
    both squares.
    """
    multi_gpu: MultiGpu = "gang"
    """Jobs with num_gpus > 1: run as a gang, or are dropped from the trace (and counted)."""
    row_order: RowOrder = "shuffled"
    """`sorted`: every epoch takes the job's rows longest first, as ASPEN's released MinPad requires
    ("must sort"), so that rows of like length share a micro-batch. Step fidelity only.
    """
    warmup: float = 0.0
    """Share of the jobs, by submission, left out of the statistics. What devices do (tokens, busy
    share, memory, steps, decisions) counts from the submission of the first job that is left, for
    whichever job they do it.
    """
    step_time_factor: float = 1.0
    """A fused step takes this many times its predicted time: a machine that is slower than its
    profile says. The policies' predictions stay those of the profile. Step fidelity only.
    """
    live: bool = False
    """Simulate as a live scheduler of one device works: the base models are there when the run
    begins, and what happens during a fused step is answered when the step has ended. Step fidelity,
    one device.
    """

    def __post_init__(self) -> None:
        _choice("fusion", self.fusion, ("packed", "padded"))
        _choice("fidelity", self.fidelity, ("rate", "step"))
        _choice("multi-gpu", self.multi_gpu, ("gang", "drop"))
        _choice("row-order", self.row_order, ("shuffled", "sorted"))
        if self.max_resident is not None and self.max_resident < 1:
            raise UsageError(f"max-resident must be at least 1, not {self.max_resident}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed must be from 0 to 2^63 - 1, not {self.seed}")
        if not 0 <= self.prediction_error <= 10:
            raise UsageError(f"prediction-error must be from 0 to 10, not {self.prediction_error}")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"warmup must be a share of the jobs, from 0 to below 1, not {self.warmup}")
        if self.fidelity == "rate" and self.row_order == "sorted":
            raise UsageError("sorted rows have no constant rate: row-order sorted needs --fidelity step")
        if not 1e-6 <= self.step_time_factor <= 1e6:
            raise UsageError(f"step-time-factor must be from 1e-6 to 1e6, not {self.step_time_factor}")
        if self.fidelity == "rate" and (self.step_time_factor != 1.0 or self.live):
            raise UsageError("step-time-factor and live are of single steps: they need --fidelity step")
        if self.fidelity == "step" and self.speedup_curve is not None:
            raise UsageError("--speedup-curve replaces the step-time model, so it needs --fidelity rate")

    def as_dict(self) -> dict[str, Any]:
        """Return the options as a mapping, for the manifest."""
        return asdict(self)


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")

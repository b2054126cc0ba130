"""This module holds the constants of a job and its base that memory and step time are made of.

One fused step consists of them. The models are linear in these constants, so that a scheduler adds
and removes jobs in O(1):

    memory of a device   = sum over bases in use (weights_bytes) + context_bytes
                         + sum of own_bytes + max over bases (dynamic)
    dynamic of a base    = dynamic_bytes + sum over its jobs
                           (token_bytes * T_i + square_bytes * Q_i + row_bytes * rows_i)
                           (with a fitted profile: by the allocation plan of the set, `planned`)
    time of a fused step = max(floor_s + method floors,
                               read_s + sum(token_s * T_i + square_s * Q_i)) + sum(step_s)
                           (packed: plus base.token_s for each token of rounding, inside the max)

with T_i the tokens computed for job i in the step (padded: rows * longest row of the step rounded
up to 8; packed: the sum of its lengths, the step's total rounded up to 8) and Q_i the sum of
squared row lengths (padded: rows * padded length^2). Derived in
profiles/README.md, after arXiv 2312.02515 section 4 and arXiv 2510.00206.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from loramux_profiles.length_table import LengthDist
from loramux_profiles.planned import PlannedMemory
from loramux_profiles.step_point import AdapterPoint
from loramux_profiles.widths import ROUNDING as ROUNDING

ADMISSION_QUANTILE: Final = 0.999
"""Length quantile that admission reckons with, and at which a job's rows are truncated.

This cuts 0.07% of the tokens of the default shape; `fuse` checks the real lengths.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseCost:
    """Holds the cost of a frozen base model on one device type.

    Values are in bytes and seconds, and they are expected values.
    """

    key: str
    """`base_model`, with `:dtype` appended unless bf16; jobs with equal keys share one copy."""
    weights_bytes: int
    context_bytes: int
    """CUDA context and libraries, once per process."""
    dynamic_bytes: float
    """Part of a step's peak that no job causes (workspaces): b0."""
    floor_s: float
    """Launch-bound time of a step without adapters: c0 + c1 * kernels."""
    read_s: float
    """Time to read the weights from memory once forward and once backward."""
    load_s: float
    """Time to bring the weights to the device."""
    token_s: float = 0.0
    """Seconds per token without adapters: what a token of the packed rounding costs.

    Such a token belongs to no job.
    """
    planned: PlannedMemory | None = None
    """Dynamic bytes of sets and steps by the allocation plan; None: by the linear constants."""

    def dynamic_of(self, costs: Sequence[JobCost]) -> float:
        """Return the expected dynamic bytes of these jobs in one packed step (as admitted)."""
        if self.planned is not None:
            return self.planned.admitted(costs)
        return self.dynamic_bytes + sum([cost.dynamic_q for cost in costs])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JobCost:
    """Holds the cost of one class of jobs on one device type, under one fusion mode.

    It is frozen and shared by all jobs of the class. It is compared and hashed by identity: a
    CostModel gives equal jobs the same object, and caches are keyed by it.
    """

    base: BaseCost
    method: str
    """The method, with `:targets` unless all-linear.

    Jobs with equal `method` on one base share its kernels.
    """
    rows: int
    """Sequences in one micro-batch."""
    accumulation: float
    """Micro-batches per optimizer step: batch_size / rows."""
    lengths: LengthDist
    """Lengths of the rows it trains on; longer ones are truncated to `length_q`.

    They are not truncated where memory is not modelled.
    """
    length_q: int
    """ADMISSION_QUANTILE of the longest row of a micro-batch, in tokens.

    It is the maximum length that the job is admitted with.
    """
    tokens_q: float
    """Tokens of one micro-batch that admission reckons with, rounded up.

    They are padded rows * length_q, packed the quantile of the sum.
    """
    squares_q: float
    """Sum of squared lengths of that micro-batch, at most."""
    own_bytes: int
    """Bytes that are resident whatever runs.

    They are 16 bytes per trainable parameter (fp32 weight, gradient, two Adam moments) and a bf16
    copy.
    """
    state_bytes: int
    """Bytes that a pause moves to the host and a resume moves back."""
    token_bytes: float
    square_bytes: float
    row_bytes: float
    overridden: bool
    """True where the trace gave mem_bytes.

    own_bytes is then all the job needs, and no base is charged.
    """
    token_s: float
    square_s: float
    step_s: float
    """Seconds per fused step for this job, mainly for its optimizer.

    The optimizer takes c2 * trainable parameters, spread over the micro-batches of an optimizer
    step. A fitted profile adds its seconds per job and per row.
    """
    method_floor_s: float
    """Launch time that the first job of this method adds to the floor of a step."""
    solo_step_s: float
    """Expected seconds of one micro-batch alone on the device (mean over lengths)."""
    load_s: float
    """Time to bring the adapter to the device for the first time."""
    pause_s: float
    """Time to move its state out (and the same back in)."""
    real_tokens: float
    """Expected non-pad tokens of one micro-batch: rows * mean length."""
    adapter: AdapterPoint | None = None
    """What the plan knows its adapter by, where its base is planned."""
    recompute: bool = False
    dynamic_q: float = field(init=False)
    """Activations of that micro-batch at the admission quantile, were it alone in the step."""
    alone_q: float = field(init=False)
    """The same with the base's own part.

    Both are kept because admission adds them up at every look at a device.
    """

    def __post_init__(self) -> None:
        dynamic = self.token_bytes * self.tokens_q + self.square_bytes * self.squares_q + self.row_bytes * self.rows
        planned = self.base.planned
        if planned is not None:
            dynamic = planned.admitted((self,))
        object.__setattr__(self, "dynamic_q", dynamic)
        object.__setattr__(self, "alone_q", self.base.dynamic_bytes + dynamic)

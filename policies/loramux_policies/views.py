"""What a policy sees: read-only views of jobs, devices and the cluster, and the answers it gives.

`JobView` and `Changes` are NamedTuples because one is made per enqueue: 0.9 us each where a frozen
dataclass of 20 fields took 4.1 us (CPython 3.11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

Metric = Literal["remaining_s", "attained_s"]
Rule = Literal["best-fit", "worst-fit", "first-fit", "least-loaded"]


class StaleViewError(RuntimeError):
    """A view was used after `place()` or `fuse()` had returned; keep a `snapshot()` instead."""


class JobView(NamedTuple):
    """A job as policies see it: declared and predicted figures only, never the true duration.

    `attained_s`, `remaining_s` and `state` are as of the moment the view was made (for a waiting
    job they do not move).
    """

    job_id: str
    submit_s: float
    base_model: str
    priority: int
    """Higher runs first."""
    rows: int
    """Sequences per optimizer step (batch_size)."""
    micro_batch: int
    """Sequences per fused step."""
    own_bytes: int
    """Resident bytes of its own: adapter, gradient, optimizer (or the trace's mem_bytes)."""
    state_bytes: int
    """Bytes a pause moves to the host."""
    declared_steps: float
    """Optimizer steps."""
    need_bytes: float
    """Upper memory bound of the job alone on the first device type, its base included."""
    solo_s: float
    """Predicted seconds for all declared steps alone on the first device type."""
    remaining_s: float
    """Predicted seconds left, alone."""
    attained_s: float
    """Service received, in seconds-alone."""
    enqueued_s: float
    """When it joined the waiting queue last (submission, pause or eviction)."""
    num_gpus: int
    user: str
    group: str
    deadline_s: float | None
    preemptions: int
    method: str
    tokens_per_step: float
    """Expected non-pad tokens of one micro-batch."""


class Changes(NamedTuple):
    """What happened since the last `place()`; ids in order of the events."""

    arrived: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()
    paused: tuple[str, ...] = ()
    """Evicted by the loop (out of memory), not by the policy."""
    devices: tuple[int, ...] = ()
    """Devices on which a job ended or was evicted."""


def first_come(job: JobView) -> tuple[Any, ...]:
    """The order of submission; by this very function the queue knows that it needs no view to place a job."""
    return ()


@dataclass(frozen=True, slots=True)
class Order:
    """How the waiting queue is kept: by `key`, smallest first, then submission, then job id.

    `moves=True`: the key depends on what changes while a job waits (`attained_s`, the clock), so
    the queue is re-keyed at enqueue, pause and review.
    """

    key: Callable[[JobView], tuple[Any, ...]]
    moves: bool = False


class Entry(NamedTuple):
    """One job's share of a fused step: how many rows of its next micro-batch."""

    job_id: str
    rows: int


class FusedStep(NamedTuple):
    """Which micro-batches run together in the next step; one base model per step."""

    base_model: str
    entries: tuple[Entry, ...]


class ReadyJob(Protocol):
    """A resident that could join the next fused step."""

    @property
    def job_id(self) -> str: ...
    @property
    def submit_s(self) -> float: ...
    @property
    def priority(self) -> int: ...
    @property
    def rows(self) -> int:
        """Rows of its next micro-batch."""

    @property
    def waited(self) -> int:
        """Fused steps on this device since it last ran (0: it ran in the last one)."""

    @property
    def p_stop(self) -> float:
        """Predicted probability in [0, 1] that it stops early soon; only ever reorders.

        Simulated: (steps done / predicted end)^4 from 20 optimizer steps on, where the predicted
        end is the true one times a lognormal factor (see `loramux_simulator.predictions`), early
        stop or not. 0 where no job of the trace stops early.
        """

    @property
    def longest(self) -> int:
        """Longest row of its next micro-batch, tokens."""

    @property
    def tokens(self) -> int:
        """Non-pad tokens of its next micro-batch."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Row lengths of its next micro-batch."""


class ReadyView(NamedTuple):
    """A `ReadyJob` as it is before one step, and nothing more: the loop's own record stays out of reach."""

    job_id: str
    submit_s: float
    priority: int
    rows: int
    waited: int
    p_stop: float
    longest: int
    tokens: int
    lengths: tuple[int, ...]


class DeviceView(Protocol):
    """One device before a fused step: residents of the base model whose turn it is, with their real next lengths."""

    device_id: int
    base_model: str
    padded: bool

    @property
    def now_s(self) -> float: ...
    @property
    def ready(self) -> Sequence[ReadyJob]:
        """In order of (priority descending, submit_s, job_id)."""

    @property
    def n_residents(self) -> int: ...
    def fits(self, jobs: Iterable[ReadyJob]) -> bool:
        """Whether these micro-batches, whole, fit the device by the upper bound at their real lengths."""

    def fits_rows(self, job: ReadyJob, rows: int) -> bool:
        """Whether the first `rows` rows of this job's next micro-batch fit the device alone, by the upper bound."""

    def everyone(self) -> FusedStep | None:
        """All residents in one step, or None where that does not fit; cached, so cheaper than building it."""

    def step(self, jobs: Iterable[ReadyJob]) -> FusedStep:
        """The fused step of these jobs' whole micro-batches."""


class Plan(Protocol):
    """A what-if overlay: every call is checked at once against what came before it in the same plan."""

    def candidates(self, job_id: str, rule: Rule = "best-fit") -> Iterator[int]:
        """Devices the job fits now (for a gang: the first of its devices), in the rule's order."""

    def fits(self, device_id: int, add: Sequence[str] = (), drop: Sequence[str] = ()) -> bool:
        """Whether the device would hold its residents, less `drop`, plus `add`: exact, by the upper bound and the
        seats.
        """

    def free_bytes(self, device_id: int) -> float:
        """Capacity less the upper bound of the residents (-1 where every seat is taken)."""

    def free_seats(self, device_id: int) -> float:
        """Seats left (infinite without --max-resident)."""

    def residents(self, device_id: int) -> Sequence[str]:
        """Ids on the device, as this plan leaves it."""

    def start(self, job_id: str, device_id: int, share: float = 1.0) -> None:
        """Start or resume a waiting job, or change the share of a resident. PolicyError where it does not fit, or is on
        another device. A job that is on the device with that share already, by this plan or before it, stays as it is.

        `share`: the part of a seat that the job takes (--max-resident counts seats), and so its
        part of the device. Fused, a job with share s is in the share s of the steps: whole seats
        are in all of them, the others take turns, as many at a time as their shares add up to.
        Under --speedup-curve and for separate processes the device's rate at that many seats is
        divided in proportion to the shares. Shares that add up to less than one seat are scaled up
        to it: no device idles for a share. A gang has its share on each of its devices.
        """

    def start_first(self, job_id: str, rule: Rule = "best-fit") -> int | None:
        """Start a waiting job on the first of its `candidates`, which it returns; None where there is none.

        The same as `candidates` and `start`, at half the price.
        """

    def pause(self, job_id: str) -> None:
        """Take a resident off its device; it keeps its progress and waits again."""

    def reject(self, job_id: str, reason: str, need_bytes: float, have_bytes: float) -> None:
        """Turn a waiting job away for good."""

    def review_at(self, t_s: float) -> None:
        """Ask for `place()` at that time even if nothing happens."""

    def review_when(self, job_id: str, attained_s: float) -> None:
        """Ask for `place()` when that resident's attained service reaches this much."""


class ClusterView(Protocol):
    """Everything `place()` may look at. Lazy: what is not asked for costs nothing. Raises StaleViewError once it
    returned.
    """

    @property
    def now_s(self) -> float: ...
    @property
    def changes(self) -> Changes: ...
    @property
    def n_waiting(self) -> int: ...
    @property
    def n_devices(self) -> int: ...
    @property
    def max_resident(self) -> float:
        """Seats per device (infinite without a cap)."""

    def waiting(self, n: int) -> Sequence[JobView]:
        """The first n waiting jobs in the declared order; lazy, and how far it is read tells which arrivals matter."""

    def residents(self, device_id: int) -> Sequence[JobView]:
        """Jobs on a device with current figures, in order of their start."""

    def preemptible(self, metric: Metric, above: float) -> Iterator[JobView]:
        """Residents anywhere (gangs apart) whose metric, as `remaining_s()` has it, exceeds `above`; largest first."""

    def residents_after(self, job: JobView) -> Iterator[JobView]:
        """Residents anywhere that the order puts behind this job, last first."""

    def device_of(self, job_id: str) -> int | None:
        """First device of a resident; None for a waiting job."""

    def remaining_s(self, job_id: str) -> float:
        """Predicted seconds left, alone on its device (or on the first device type while it waits)."""

    def attained_s(self, job_id: str) -> float:
        """Service received, in seconds-alone."""

    def finish_s(self, job_id: str) -> float:
        """Predicted finish of a resident if nothing changes on its device."""

    def switch_s(self, job_id: str) -> float:
        """Seconds that one pause and resume of this job cost its device (0 under --ideal)."""

    def capacity_bytes(self, device_id: int) -> float: ...
    def used_bytes(self, device_id: int) -> float:
        """Upper bound of what the residents need."""

    def snapshot(self) -> ClusterView:
        """A frozen copy that outlives the call: O(jobs), for tests, recording and --explain."""

    def plan(self) -> Plan: ...

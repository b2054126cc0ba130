"""This module defines what a policy sees, and the answers it gives.

It sees read-only views of jobs, devices and the cluster. `JobView` and `Changes` are NamedTuples
because one is made per enqueue: 0.9 us each where a frozen dataclass of 20 fields took 4.1 us
(CPython 3.11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

Metric = Literal["remaining_s", "attained_s"]
Rule = Literal["best-fit", "worst-fit", "first-fit", "least-loaded"]


class StaleViewError(RuntimeError):
    """Means that a view was used after `place()` or `fuse()` had returned.

    Keep a `snapshot()` instead.
    """


class JobView(NamedTuple):
    """Shows a job as policies see it: declared and predicted figures only.

    It never shows the true duration. `attained_s` and `remaining_s` are as of the moment the view
    was made (for a waiting job they do not move).
    """

    job_id: str
    submit_s: float
    base_model: str
    priority: int
    """A job with a higher priority runs first."""
    rows: int
    """Sequences per optimizer step (batch_size)."""
    micro_batch: int
    """Sequences of the job per fused step."""
    own_bytes: int
    """Resident bytes of the job's own: adapter, gradient, optimizer (or the trace's mem_bytes)."""
    state_bytes: int
    """Bytes a pause moves to the host."""
    declared_steps: float
    """Optimizer steps that the job declares."""
    need_bytes: float
    """Upper memory bound of the job alone on the first device type, its base included."""
    solo_s: float
    """Predicted seconds for all declared steps alone on the first device type."""
    remaining_s: float
    """Predicted seconds left when the job runs alone."""
    attained_s: float
    """Service that the job has received, in seconds-alone."""
    enqueued_s: float
    """Time at which the job last joined the waiting queue (submission, pause or eviction)."""
    num_gpus: int
    user: str
    group: str
    deadline_s: float | None
    preemptions: int
    method: str
    tokens_per_step: float
    """Expected non-pad tokens of one micro-batch."""


class Changes(NamedTuple):
    """Says what happened since the last `place()`; ids are in order of the events."""

    arrived: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()
    paused: tuple[str, ...] = ()
    """Jobs evicted by the loop (out of memory), not by the policy."""
    devices: tuple[int, ...] = ()
    """Devices on which a job ended or was evicted."""


def first_come(job: JobView) -> tuple[Any, ...]:
    """Give every job the same key, so that jobs keep the order of submission.

    The queue compares a key with this very function to know that it needs no view to place a job.
    """
    return ()


@dataclass(frozen=True, slots=True)
class Order:
    """Says how the waiting queue is kept: by `key`, smallest first, then submission, then job id.

    The key is a tuple of numbers or texts, never NaN, that compare with those of every other job.
    `moves=True`: the key depends on what changes while a job waits (`attained_s`, the clock), so
    the queue is re-keyed at enqueue, pause and review.
    """

    key: Callable[[JobView], tuple[Any, ...]]
    moves: bool = False


class Entry(NamedTuple):
    """Gives one job's share of a fused step: how many rows of its next micro-batch."""

    job_id: str
    rows: int


class FusedStep(NamedTuple):
    """Says which micro-batches run together in the next step; there is one base model per step."""

    base_model: str
    entries: tuple[Entry, ...]


class ReadyJob(Protocol):
    """Describes a resident that could join the next fused step."""

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
        """Predicted probability in [0, 1] that it stops early soon; it only ever reorders.

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
    """Shows a `ReadyJob` as it is before one step, and nothing more.

    The loop's own record stays out of reach.
    """

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
    """Shows one device before a fused step.

    It has the residents of the base model whose turn it is, with their real next lengths.
    """

    device_id: int
    base_model: str
    padded: bool

    @property
    def now_s(self) -> float: ...
    @property
    def ready(self) -> Sequence[ReadyJob]:
        """Residents in order of (priority descending, submit_s, job_id)."""

    @property
    def n_residents(self) -> int: ...
    def fits(self, jobs: Iterable[ReadyJob]) -> bool:
        """Return whether these whole micro-batches fit the device.

        It goes by the upper bound at their real lengths.
        """

    def fits_rows(self, job: ReadyJob, rows: int) -> bool:
        """Return whether the first `rows` rows of this job's next micro-batch fit the device alone.

        It goes by the upper bound.
        """

    def everyone(self) -> FusedStep | None:
        """Return all residents in one step, or None where that does not fit.

        It is cached, so cheaper than building it.
        """

    def step(self, jobs: Iterable[ReadyJob]) -> FusedStep:
        """Return the fused step of these jobs' whole micro-batches."""


class Plan(Protocol):
    """Overlays the cluster with what-if changes.

    Every call is checked at once against what came before it in the same plan.
    """

    def candidates(self, job_id: str, rule: Rule = "best-fit") -> Iterator[int]:
        """Yield the devices that the job fits now, in the rule's order.

        For a gang it yields the first of its devices.
        """

    def fits(self, device_id: int, add: Sequence[str] = (), drop: Sequence[str] = ()) -> bool:
        """Return whether the device would hold its residents, less `drop`, plus `add`.

        The answer is exact, by the upper bound and the seats.
        """

    def free_bytes(self, device_id: int) -> float:
        """Return the capacity less the upper bound of the residents.

        It is -1 where every seat is taken.
        """

    def free_seats(self, device_id: int) -> float:
        """Return the seats that are left (infinite without --max-resident)."""

    def residents(self, device_id: int) -> Sequence[str]:
        """Return the ids of the jobs on the device, as this plan leaves it."""

    def start(self, job_id: str, device_id: int, share: float = 1.0) -> None:
        """Start or resume a waiting job, or change the share of a resident.

        PolicyError where it does not fit, or is on another device. A job that is on the device with
        that share already, by this plan or before it, stays as it is.

        `share`: the part of a seat that the job takes (--max-resident counts seats), and so its
        part of the device. Fused, a job with share s is in the share s of the steps: whole seats
        are in all of them, the others take turns, as many at a time as their shares add up to.
        Under --speedup-curve and for separate processes the device's rate at that many seats is
        divided in proportion to the shares. Shares that add up to less than one seat are scaled up
        to it: no device idles for a share. A gang has its share on each of its devices.
        """

    def start_first(self, job_id: str, rule: Rule = "best-fit") -> int | None:
        """Start a waiting job on the first of its `candidates`, and return that device.

        Returns None where there is none. The result is that of `candidates` and `start`, at half
        the price.
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
    """Shows everything that `place()` may look at.

    It is lazy: what is not asked for costs nothing. Raises StaleViewError once `place()` has
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
        """Return the first n waiting jobs in the declared order.

        It is lazy, and how far it is read tells which arrivals matter.
        """

    def residents(self, device_id: int) -> Sequence[JobView]:
        """Return the jobs on a device with current figures, in order of their start."""

    def preemptible(self, metric: Metric, above: float) -> Iterator[JobView]:
        """Yield the residents anywhere (gangs apart) whose metric exceeds `above`, largest first.

        The metric is as `remaining_s()` has it.
        """

    def residents_after(self, job: JobView) -> Iterator[JobView]:
        """Yield the residents anywhere that the order puts behind this job, last first."""

    def device_of(self, job_id: str) -> int | None:
        """Return the first device of a resident; None for a waiting job."""

    def remaining_s(self, job_id: str) -> float:
        """Return the predicted seconds left when the job is alone on its device.

        While it waits, the first device type is assumed.
        """

    def attained_s(self, job_id: str) -> float:
        """Return the service received, in seconds-alone."""

    def finish_s(self, job_id: str) -> float:
        """Return the predicted finish of a resident if nothing changes on its device."""

    def switch_s(self, job_id: str) -> float:
        """Return the seconds that one pause and resume of this job cost its device.

        They are 0 under --ideal.
        """

    def capacity_bytes(self, device_id: int) -> float: ...
    def used_bytes(self, device_id: int) -> float:
        """Return the upper bound of what the residents need."""

    def snapshot(self) -> ClusterView:
        """Return a frozen copy that outlives the call.

        It takes O(jobs) and serves tests, recording and --explain.
        """

    def plan(self) -> Plan: ...

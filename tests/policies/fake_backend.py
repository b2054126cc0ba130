"""A device driver of thirty lines and a device view made of numbers.

Rules are tested without the simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf

import numpy as np

from loramux_policies import Policy
from loramux_policies.loop.job import Job
from loramux_policies.loop.ledger import Ledger
from loramux_policies.loop.live_view import LiveView
from loramux_policies.loop.plan import DeltaPlan
from loramux_policies.loop.scheduler import Scheduler
from loramux_policies.views import Entry, FusedStep, ReadyJob
from loramux_profiles.length_table import LengthDist
from loramux_profiles.work import BaseCost, JobCost
from loramux_traces.arrays import Floats
from loramux_traces.job import JobSpec

GIB = 2**30
LENGTHS = LengthDist("one", np.array([0.0] * 99 + [1.0]))
Phi = Callable[[float], float]
OnPlan = Callable[[LiveView, DeltaPlan], None]


@lru_cache
def base(key: str = "base", gib: float = 0.0) -> BaseCost:
    """A base model of so many GiB."""
    return BaseCost(
        key=key,
        weights_bytes=int(gib * GIB),
        context_bytes=0,
        dynamic_bytes=0.0,
        floor_s=0.0,
        read_s=0.0,
        load_s=0.0,
    )


@lru_cache
def cost(gib: float, of: BaseCost, pause_s: float, tokens: float) -> JobCost:
    """A job class of so many GiB, one solo second per step."""
    return JobCost(
        base=of,
        method="lora",
        rows=1,
        accumulation=1.0,
        lengths=LENGTHS,
        length_q=100,
        tokens_q=100.0,
        squares_q=0.0,
        own_bytes=int(gib * GIB),
        state_bytes=0,
        token_bytes=0.0,
        square_bytes=0.0,
        row_bytes=0.0,
        overridden=of.weights_bytes == 0,
        token_s=0.0,
        square_s=0.0,
        step_s=0.0,
        method_floor_s=0.0,
        solo_step_s=1.0,
        load_s=0.0,
        pause_s=pause_s,
        real_tokens=tokens,
    )


def job(
    job_id: str,
    submit_s: float,
    size_s: float,
    gib: float = 1.0,
    *,
    priority: int = 0,
    num_gpus: int = 1,
    user: str = "",
    of: BaseCost | None = None,
    pause_s: float = 0.0,
    tokens: float = 1000.0,
    fits_type: Sequence[bool] = (True,),
) -> Job:
    """A job that takes `size_s` alone and holds `gib`."""
    of = of or base()
    spec = JobSpec(
        job_id=job_id,
        submit_s=submit_s,
        base_model="any",
        method="lora",
        batch_size=1,
        seq_len=100.0,
        total_steps=size_s,
        priority=priority,
        num_gpus=num_gpus,
        user=user,
    )
    costs = tuple(cost(gib, of, pause_s, tokens) if fits else None for fits in fits_type)
    own = float(int(gib * GIB))
    return Job(0, spec, costs, size_s, size_s, own, own + of.weights_bytes)


def shared(seats: float) -> float:
    """Residents share one unit of speed."""
    return 1.0


def free(seats: float) -> float:
    """Every resident runs as if alone."""
    return seats


class FakeBackend:
    """Residents of a device share the rate phi(seats in use) by their shares.

    A gang goes at its slowest device's pace.
    """

    def __init__(self, phi: Phi = shared) -> None:
        self.now_s = 0.0
        self.phi = phi
        self.loop: Scheduler
        self.finished_s: dict[str, float] = {}
        self.started_s: dict[str, float] = {}
        self.pauses: list[tuple[float, str]] = []
        self._reviews: set[float] = set()
        self._watches: dict[str, float] = {}

    def start(self, job: Job, devices: tuple[int, ...], share: float) -> None:
        self.started_s.setdefault(job.job_id, self.now_s)

    def set_share(self, job: Job, share: float) -> None:
        pass

    def stop(self, job: Job) -> None:
        self._watches.pop(job.job_id, None)
        self.pauses.append((self.now_s, job.job_id))

    def sync(self, job: Job) -> None:
        pass

    def progress(self) -> tuple[Sequence[Job | None], Floats, Floats]:
        jobs = [job for job in self.loop.cluster.running.values() if job.spec.num_gpus == 1]
        left = [self.loop.cluster.remaining_s(job) for job in jobs]
        return jobs, np.array([job.attained_s for job in jobs]), np.array(left)

    def finish_s(self, job: Job) -> float:
        return self.now_s + self._left(job) / self._rate(job)

    def review_at(self, t_s: float) -> None:
        self._reviews.add(t_s)

    def review_when(self, job: Job, attained_s: float) -> None:
        self._watches[job.job_id] = min(attained_s, self._watches.get(job.job_id, inf))

    def _left(self, job: Job) -> float:
        return job.true_steps - job.attained_s

    def _rate(self, job: Job) -> float:
        totals = [sum(other.share for other in self.loop.cluster.fleet[d].jobs.values()) for d in job.devices]
        return min(job.share * self.phi(total) / total for total in totals)

    def run(self, loop: Scheduler, jobs: Iterable[Job], until_s: float = inf) -> None:
        """Events in order of time: ends, then arrivals, then one decision."""
        self.loop = loop
        waiting = sorted(jobs, key=lambda job: (job.spec.submit_s, job.job_id), reverse=True)
        while waiting or loop.cluster.running:
            rates = {job_id: self._rate(job) for job_id, job in loop.cluster.running.items()}
            times = [self.now_s + self._left(job) / rates[i] for i, job in loop.cluster.running.items()]
            times += [waiting[-1].spec.submit_s] if waiting else []
            times += [t_s for t_s in self._reviews if t_s > self.now_s]
            for i, attained_s in self._watches.items():
                times.append(self.now_s + max(0.0, attained_s - loop.cluster.running[i].attained_s) / rates[i])
            then_s = min(times)
            if then_s > until_s:
                return
            for i, job in loop.cluster.running.items():
                job.attained_s += rates[i] * (then_s - self.now_s)
                job.done_steps = job.attained_s
            self.now_s = then_s
            slack = 1e-12 + 1e-14 * then_s
            for job in [job for job in loop.cluster.running.values() if self._left(job) <= slack * 10]:
                job.attained_s = job.done_steps = job.true_steps
                self.finished_s[job.job_id] = then_s
                self._watches.pop(job.job_id, None)
                loop.finish(job)
            for i, attained_s in list(self._watches.items()):
                if loop.cluster.running[i].attained_s >= attained_s - slack * 10:
                    del self._watches[i]
                    loop.review()
            if any(t_s <= then_s for t_s in self._reviews):
                self._reviews = {t_s for t_s in self._reviews if t_s > then_s}
                loop.review()
            while waiting and waiting[-1].spec.submit_s <= then_s:
                loop.arrive(waiting.pop())
            loop.decide()
            assert loop.cluster.running or waiting or not loop.cluster.queue, (
                f"{loop.policy.name} stalls with {len(loop.cluster.queue)} waiting"
            )


def play(
    policy: Policy,
    jobs: Iterable[Job],
    *,
    devices: int = 1,
    gib: float = inf,
    types: Sequence[int] = (),
    seats: float = inf,
    phi: Phi = shared,
    on_plan: OnPlan | None = None,
    until_s: float = inf,
) -> FakeBackend:
    """Run jobs under a policy; every event checks memory and seats."""
    type_of = list(types) or [0] * devices
    ledgers = [
        Ledger(
            i,
            type_index,
            capacity=gib * GIB / (1 + type_index),
            margin=0.0,
            padded=False,
            separate=policy.copies == "separate",
            seats_max=seats,
        )
        for i, type_index in enumerate(type_of)
    ]

    def check(*_: object) -> None:
        for ledger in loop.cluster.fleet:
            assert ledger.used <= ledger.capacity and ledger.seats <= ledger.seats_max + 1e-6

    backend = FakeBackend(phi)
    loop = Scheduler(policy, ledgers, backend, max_resident=seats, listener=check, on_plan=on_plan)
    backend.run(loop, jobs, until_s)
    return backend


@dataclass
class Ready:
    """A resident's next micro-batch."""

    job_id: str
    lengths: tuple[int, ...]
    submit_s: float = 0.0
    priority: int = 0
    waited: int = 0
    p_stop: float = 0.0

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


@dataclass
class FakeDevice:
    """A device that holds so many computed tokens (contract: `views.DeviceView`)."""

    ready: list[Ready]
    capacity_tokens: float = inf
    padded: bool = True
    device_id: int = 0
    base_model: str = "base"
    now_s: float = 0.0
    asked: int = field(default=0)

    def __post_init__(self) -> None:
        self.ready.sort(key=lambda job: (-job.priority, job.submit_s, job.job_id))

    @property
    def n_residents(self) -> int:
        return len(self.ready)

    def computed(self, jobs: Iterable[ReadyJob]) -> int:
        """Tokens the device would compute."""
        jobs = list(jobs)
        if not self.padded:
            return sum(job.tokens for job in jobs)
        return sum(job.rows for job in jobs) * -(-max((job.longest for job in jobs), default=0) // 8) * 8

    def fits(self, jobs: Iterable[ReadyJob]) -> bool:
        self.asked += 1
        return self.computed(jobs) <= self.capacity_tokens

    def fits_rows(self, job: ReadyJob, rows: int) -> bool:
        return self.fits([Ready(job.job_id, job.lengths[:rows])])

    def everyone(self) -> FusedStep | None:
        return self.step(self.ready) if self.computed(self.ready) <= self.capacity_tokens else None

    def step(self, jobs: Iterable[ReadyJob]) -> FusedStep:
        return FusedStep(self.base_model, tuple(Entry(job.job_id, job.rows) for job in jobs))

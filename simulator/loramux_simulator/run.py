"""One simulated run: its parts are put together, played, and its result is read off."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import exp, log1p
from statistics import NormalDist
from typing import Any, Final, Literal

import pandas as pd

from loramux_policies import Policy
from loramux_policies.loop.asking import OnPlan
from loramux_policies.loop.blame import check_policy, failed, few
from loramux_policies.loop.events import ARRIVE, FAIL, FINISH, REJECT, Event
from loramux_policies.loop.intake import Intake
from loramux_policies.loop.job import Job
from loramux_policies.loop.ledger import Ledger
from loramux_policies.loop.live_view import LiveView
from loramux_policies.loop.meters import Meters
from loramux_policies.loop.plan import DeltaPlan
from loramux_policies.loop.recorder import Recorder
from loramux_policies.loop.scheduler import Scheduler
from loramux_profiles.cost import CostModel
from loramux_profiles.curves import SpeedupCurve, load_curve
from loramux_profiles.devices import DeviceProfile
from loramux_profiles.streams import uniform
from loramux_simulator.options import SimOptions
from loramux_simulator.paces import CurvePace, FusedPace, Pace, SlicedPace, WindowPace
from loramux_simulator.predictions import Predictions
from loramux_simulator.rate_engine import RateEngine
from loramux_simulator.rollout import RollOut
from loramux_simulator.seeds import seed_redraws
from loramux_simulator.step_engine import StepEngine
from loramux_traces.decimals import as_written
from loramux_traces.errors import UsageError
from loramux_traces.job import JobSpec, Trace
from loramux_traces.results import empty_timeline, summarise

QUANTILE_99: Final = 2.3263478740408408
"""Quantile of the standard normal: the upper memory bound is read as the 99% quantile of actual /
predicted.
"""

OnProgress = Callable[[int, int], None]
"""Called now and then with (jobs ended, jobs in the trace)."""


@dataclass(slots=True, kw_only=True)
class RunResult:
    """A RunResult holds the results of one simulated run.

    `jobs`: a row per job (columns: `loramux_traces.results.JOB_COLUMNS`), sorted by job id.
    """

    policy: str
    seed: int
    jobs: pd.DataFrame
    summary: dict[str, Any]
    timeline: dict[str, Any]
    events: list[dict[str, Any]] | None
    devices: list[dict[str, Any]]
    options: dict[str, Any]
    origin: str
    """The weakest origin among the cost parameters used: assumed, fitted or measured."""
    hopeless: int = 0
    """Number of jobs that fit no device of the run."""
    seed_redraws: tuple[str, ...] = ()
    """What another seed would have drawn anew (`seeds.seed_redraws`)."""

    def entry(self) -> dict[str, Any]:
        """Return this run's object in the `runs` of `simulate --json`."""
        return {"policy": self.policy, "seed": self.seed, **self.summary}


def _unseen(on_plan: OnPlan) -> OnPlan:
    """Wrap an observer so that it leaves no trace in the run.

    The observer may read the queue. How far it reads must not tell the loop which arrivals matter.
    """

    def tell(view: LiveView, plan: DeltaPlan) -> None:
        read = [(window, window.read, window.last, window.exhausted) for window in view._windows]
        on_plan(view, plan)
        view._windows[:] = [window for window, *_ in read]
        for window, how_far, last, exhausted in read:
            window.read, window.last, window.exhausted = how_far, last, exhausted

    return tell


class SimulatedRun:
    """Builds the parts of one run and connects them."""

    def __init__(
        self,
        trace: Trace,
        policy: Policy,
        profiles: Sequence[DeviceProfile],
        options: SimOptions,
        *,
        events: bool,
        timeline: bool,
        progress: OnProgress | None,
        on_plan: OnPlan | None,
    ) -> None:
        check_policy(policy)
        self.policy, self.options = policy, options
        specs = list(trace.jobs)
        self.notes: list[str] = []
        if options.multi_gpu == "drop":
            kept = [spec for spec in specs if spec.num_gpus == 1]
            if len(kept) < len(specs):
                self.notes.append(
                    f"dropped {len(specs) - len(kept)} jobs that ask for several devices (--multi-gpu drop)"
                )
            specs = kept
        self.specs: list[JobSpec] = specs
        self.profiles = profiles
        types = list(dict.fromkeys(profiles))
        self.types = types
        self.type_of = [types.index(profile) for profile in profiles]
        self.curve: SpeedupCurve | None = None if options.speedup_curve is None else load_curve(options.speedup_curve)
        self.models = [
            CostModel(
                profile,
                fusion=options.fusion,
                copies=self.copies,
                ideal=options.ideal,
                rates=self.curve,
                folder=trace.folder,
            )
            for profile in types
        ]
        self.sigmas = [log1p(model.upper_margin) / QUANTILE_99 for model in self.models]
        self.worst = [exp(4.0 * sigma) for sigma in self.sigmas]
        self.predictions = Predictions(specs, options, oracle=policy.oracle)
        self.meters = Meters(len(profiles), record=timeline)
        self.timeline = timeline
        self.engine = self._engine()
        self.recorder = Recorder(
            specs, partial(getattr, self.engine, "now_s"), self.type_of, events=events, segments=timeline
        )
        self.progress = progress
        self.ended = 0
        self.decided_warm = 0
        seats = float("inf") if options.max_resident is None else float(options.max_resident)
        self.ledgers = [
            Ledger(
                i,
                type_index,
                capacity=float(self.models[type_index].capacity_bytes),
                margin=self.models[type_index].upper_margin,
                padded=options.fusion == "padded",
                separate=self.copies == "separate",
                seats_max=seats,
            )
            for i, type_index in enumerate(self.type_of)
        ]
        self.loop = Scheduler(
            policy,
            self.ledgers,
            self.engine,
            max_resident=seats,
            listener=self._hear,
            on_plan=None if on_plan is None else _unseen(on_plan),
        )
        self.intake = Intake(
            self.models,
            [self.type_of.count(i) for i in range(len(types))],
            oracle=policy.oracle,
            unschedulable=self.recorder.unschedulable,
            predict=self.predictions.steps if options.prediction_error > 0.0 and not options.ideal else None,
        )

    # -- parts

    @property
    def copies(self) -> Literal["shared", "separate"]:
        """Copies of the base model on a device: one that all jobs share, or one for each job.

        A live device has one copy. A policy of one seat may run there even if it asks for separate
        copies: no other job is beside its own, so that one copy serves it.
        """
        return "shared" if self.options.live and self.policy.seats <= 1 else self.policy.copies

    def _engine(self) -> RateEngine | StepEngine:
        options, policy = self.options, self.policy
        separate = self.copies == "separate"
        if options.live and (separate or len(self.profiles) > 1):
            raise UsageError("live is one device with one base copy: not several devices, nor separate processes")
        if options.fidelity == "step":
            if any(spec.num_gpus > 1 for spec in self.specs):
                raise UsageError(
                    "--fidelity step simulates jobs of one device; use --fidelity rate or --multi-gpu drop"
                )
            return StepEngine(
                self.type_of,
                policy,
                self.meters,
                options.seed,
                padded=options.fusion == "padded",
                phi=(lambda i: self._phi(i)) if separate else None,
                actual=None if options.ideal else self._actual_bytes,
                charges=not options.ideal,
                sorted_rows=options.row_order == "sorted",
                stops=self.predictions.end_steps,
                time_factor=options.step_time_factor,
                live=options.live,
            )
        return RateEngine(
            self.type_of,
            self._pace,
            self.meters,
            ooms=None if options.ideal else self._runs_out,
            separate=separate,
            charges=not options.ideal,
        )

    def _phi(self, type_index: int) -> Callable[[int], float]:
        curve = self.models[type_index].rates
        assert curve is not None
        return curve.phi

    def _pace(self, type_index: int) -> Pace:
        options, policy = self.options, self.policy
        if self.models[type_index].rates is not None:
            return CurvePace(self._phi(type_index))
        if policy.slices and options.ideal:
            return SlicedPace(options.fusion)
        fused = FusedPace(options.fusion)
        if policy.max_fused is None and type(policy).fuse is Policy.fuse:
            return fused
        roll = RollOut(
            policy,
            lambda i: self.loop.cluster.fleet[i],
            options.seed,
            padded=options.fusion == "padded",
            clock=lambda: self.engine.now_s,
            stops=self.predictions.end_steps,
        )
        return WindowPace(roll, fused)

    def _sigma(self, device_id: int) -> float:
        """Return the spread of log(actual / predicted).

        With it, the upper bound of the ledger is the 99% quantile of that ratio.
        """
        return self.sigmas[self.type_of[device_id]]

    def _error(self, job: Job) -> float:
        """Return a standard normal error of the memory model, with one draw per stay of the job.

        The error applies to the steps in which `job` is the newest.
        """
        stay = job.preemptions + 1_000_000 * job.oom_events
        return NormalDist().inv_cdf(uniform(self.options.seed, job.job_id, "memory", stay))

    def _actual_bytes(self, job: Job, dynamic: float) -> float:
        return dynamic * exp(self._sigma(job.devices[0] if job.devices else 0) * self._error(job))

    def _runs_out(self, job: Job, device_id: int) -> float:
        """Return the bytes that the device would need, where they are more than it has; else 0."""
        ledger = self.loop.cluster.fleet[device_id]
        room = ledger.capacity - (ledger.expected - ledger.dynamic)
        type_index = self.type_of[device_id]
        # An error beyond 4 sigma happens once in 30,000 draws, so that it is not worth a draw.
        if ledger.dynamic * self.worst[type_index] <= room:
            return 0.0
        actual = ledger.dynamic * exp(self.sigmas[type_index] * self._error(job))
        return actual + ledger.capacity - room if actual > room else 0.0

    def _hear(self, event: Event, job: Job, devices: tuple[int, ...], detail: str) -> None:
        if event == ARRIVE:
            self.meters.queue(self.engine.now_s, self.loop.cluster.n_waiting)
            if self.recorder.events is None:
                return
        self.recorder.hear(event, job, devices, detail)
        if self.progress is not None and event in (FINISH, FAIL, REJECT):
            self.ended += 1
            if self.ended % 256 == 0:
                self.progress(self.ended, len(self.specs))

    # -- the run

    def play(self) -> RunResult:
        """Run the trace and sum up the results."""
        arrivals: Iterator[Job] = self.intake.jobs(self.specs)
        warm = int(as_written(self.options.warmup) * len(self.specs))
        if warm:
            self.engine.at(self.specs[warm].submit_s, self._begin_window)
        with _rare_collections():
            self.engine.run(self.loop, arrivals)
        if self.progress is not None:
            self.progress(len(self.specs), len(self.specs))
        self._check_nobody_starved()
        jobs = self.recorder.table()
        stats = self.meters.stats([ledger.capacity for ledger in self.ledgers])
        stats.decisions = self.loop.decisions - self.decided_warm
        stats.notes = [*self.notes, *self._rate_notes()]
        counted = jobs
        if warm:
            counted = jobs[jobs["job_id"].isin({spec.job_id for spec in self.specs[warm:]})]
            ended = float(jobs["finish_time"].max())
            stats.window_s = max(0.0, ended - self.specs[warm].submit_s) if ended == ended else 0.0
        summary = summarise(counted, stats)
        devices = [
            {
                "device_id": i,
                "name": profile.name,
                "memory_capacity_bytes": self.ledgers[i].capacity,
            }
            for i, profile in enumerate(self.profiles)
        ]
        timeline = empty_timeline()
        timeline["devices"] = devices
        if self.timeline:
            timeline["segments"] = self.recorder.segments()
            timeline.update(self.meters.samples())
        return RunResult(
            policy=self.policy.name,
            seed=self.options.seed,
            jobs=jobs,
            summary=summary,
            timeline=timeline,
            events=self.recorder.log(),
            devices=devices,
            options=self.options.as_dict(),
            origin=weakest_origin(self.types),
            hopeless=self.intake.hopeless,
            seed_redraws=seed_redraws(self.specs, self.policy, self.models, self.options),
        )

    def _begin_window(self, _: Any) -> None:
        """Begin the statistics anew: the warm-up is over.

        What devices did until now is not in the statistics.
        """
        self.engine.settle()
        self.meters.begin_window()
        self.decided_warm = self.loop.decisions

    def _check_nobody_starved(self) -> None:
        cluster = self.loop.cluster
        if cluster.queue.count:
            first = cluster.queue[0]
            hint = (
                f"{first.job_id} alone needs {first.need_bytes:.0f} bytes at most; plan.candidates(job) yields the "
                "devices that a job fits, plan.review_at(t_s) asks for another place() at that time"
            )
            names = few((job.job_id for job in cluster.queue), cluster.queue.count)
            what = f"{cluster.queue.count} jobs wait ({names}) and nothing will wake it"
            raise failed(self.policy, self.engine.now_s, what, cluster, hint, did="stalled")

    def _rate_notes(self) -> list[str]:
        if not isinstance(self.engine, RateEngine):
            return []
        rolled = sum(pace.rolled for pace in self.engine.paces if isinstance(pace, WindowPace))
        return [f"rates from {rolled} roll-outs of fuse() (within 5%)"] if rolled else []


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Make the cyclic garbage collector run rarely during a run.

    A run makes almost no cycles, and the collector would walk a million jobs again and again.
    """
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def weakest_origin(profiles: Sequence[DeviceProfile]) -> str:
    """Return assumed, fitted or measured: the weakest origin among the constants of these devices.

    Where a measured record is all that jobs are costed by, only the memory is left of the device's
    own constants, and the origin is fitted.
    """
    origins: set[str] = set()
    for profile in profiles:
        own = profile.fitted is not None and not profile.fitted.allow_other
        origins |= {"fitted"} if own else set(profile.origins().values())
    return next(origin for origin in ("assumed", "fitted", "measured") if origin in origins)

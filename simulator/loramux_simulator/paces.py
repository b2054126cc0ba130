"""Model how fast the residents of a device move between two events (rate fidelity).

There are four models behind one small interface. `speed(runs)` gives the virtual clock's rate and
the expected tokens and steps per unit; `per_unit(run)` how many micro-steps a run does per unit. A
unit is one micro-step of every resident (fused) or one solo-second of a whole seat (time-shared).
What a share below 1 means is in `shares`; every pace here keeps to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple, Protocol

from loramux_policies.loop.meters import Speed
from loramux_policies.stepping.shares import phi_at, seating
from loramux_profiles.memory import Fusion
from loramux_profiles.rates import ExpectedStep, expected_step
from loramux_profiles.work import JobCost
from loramux_simulator.virtual_time import Run

CACHE_SIZE: Final = 200_000


def place_of(run: Run) -> tuple[int, float, str]:
    """Return the order of residents in which they share seats, and in which `fuse()` sees them."""
    spec = run.job.spec
    return (-spec.priority, spec.submit_s, spec.job_id)


class Pace(Protocol):
    """A Pace is a model of how residents share a device."""

    varies: bool
    """Whether `per_unit` of a run depends on its peers (all are then rebased when residents come or
    go).
    """
    steps_apart: bool
    """Whether every run makes steps of its own, in place of fused ones."""

    def speed(self, runs: Collection[Run]) -> Speed: ...
    def per_unit(self, run: Run) -> float: ...


class FusedPace:
    """Every resident is in every fused step, or in its share of them; bases take turns.

    E[t] comes from the length distributions, never t(E[L]).
    """

    varies = False
    steps_apart = False

    def __init__(self, fusion: Fusion) -> None:
        self._fusion: Fusion = fusion
        self._known: dict[tuple[int, ...], Speed] = {}
        self._steps: dict[tuple[int, ...], ExpectedStep] = {}
        """Steps by the residents of one base: one job more or less changes the step of its own base
        only.
        """
        self._serial: dict[JobCost, int] = {}
        """Costs in order of first sight: a key that, unlike an id, is the same in every process."""

    def speed(self, runs: Collection[Run]) -> Speed:
        """Return the speed, where one unit is one micro-step of every resident on a whole seat."""
        for run in runs:
            if run.job.share < 1.0:
                return self._shared(sorted(runs, key=place_of))
        return self._whole([run.cost for run in runs])

    def _whole(self, costs: Sequence[JobCost]) -> Speed:
        serial = self._serial
        try:
            key = tuple(sorted([serial[cost] for cost in costs]))
        except KeyError:
            for cost in costs:
                serial.setdefault(cost, len(serial))
            key = tuple(sorted([serial[cost] for cost in costs]))
        speed = self._known.get(key)
        if speed is None:
            if len(self._known) >= CACHE_SIZE:
                self._known.clear()
            speed = self._known[key] = self._compute(sorted(costs, key=serial.__getitem__))
        return speed

    def _shared(self, runs: Sequence[Run]) -> Speed:
        """Return the mean speed over the sets of residents that are in a step."""
        seats = seating([run.job.share for run in runs])
        seconds = real = computed = steps = 0.0
        for part, members in zip(seats.weights(), seats.sets, strict=True):
            speed = self._whole([runs[i].cost for i in members])
            seconds += part / speed.rate
            real += part * speed.real_per_unit
            computed += part * speed.computed_per_unit
            steps += part * speed.steps_per_unit
        scale = seats.scale
        return Speed(1.0 / (seconds * scale), real * scale, computed * scale, steps * scale)

    def _compute(self, costs: Sequence[JobCost]) -> Speed:
        by_base: dict[str, list[JobCost]] = {}
        for cost in costs:
            by_base.setdefault(cost.base.key, []).append(cost)
        seconds = computed = real = 0.0
        for group in by_base.values():
            step = self._step(group)
            seconds += step.seconds
            computed += step.computed_tokens
            real += step.real_tokens
        return Speed(1.0 / seconds, real, computed, float(len(by_base)))

    def _step(self, group: Sequence[JobCost]) -> ExpectedStep:
        key = tuple([self._serial[cost] for cost in group])
        step = self._steps.get(key)
        if step is None:
            if len(self._steps) >= CACHE_SIZE:
                self._steps.clear()
            step = self._steps[key] = expected_step(group, self._fusion)
        return step

    def per_unit(self, run: Run) -> float:
        """Return one micro-step, or the run's share of it."""
        return run.job.share


class CurvePace:
    """n residents share an aggregate rate phi(n) equally, in solo-seconds per second.

    Shares below 1 count as less than a seat. This pace serves --speedup-curve and separate
    processes (whose curve is the device's measured one).
    """

    varies = False
    steps_apart = True

    def __init__(self, phi: Callable[[int], float]) -> None:
        self._phi = phi

    def speed(self, runs: Collection[Run]) -> Speed:
        """Return the speed, where one unit is one solo-second of a whole seat."""
        shares = sum([run.job.share for run in runs])
        real = computed = steps = 0.0
        for run in runs:
            micro = self.per_unit(run)
            real += micro * run.cost.real_tokens
            steps += micro
        computed = real
        return Speed(phi_at(self._phi, shares) / shares, real, computed, steps)

    def per_unit(self, run: Run) -> float:
        """Return the run's share of a seat, in micro-steps."""
        return run.job.share / run.cost.solo_step_s


class SlicedPace(CurvePace):
    """Tied jobs take turns on a seat, and whole seats fuse.

    phi = time of the same work one after another / time fused. It approximates the mean over which
    of the tied jobs is in the step; it is exact for one seat, where phi is 1.
    """

    varies = False

    def __init__(self, fusion: Fusion) -> None:
        super().__init__(lambda _: 1.0)
        self._fused = FusedPace(fusion)

    def speed(self, runs: Collection[Run]) -> Speed:
        """Return the speed, where one unit is one solo-second of a whole seat."""
        speed = super().speed(runs)
        seats = sum([run.job.share for run in runs])
        if seats <= 1.0 + 1e-9:
            return speed
        together = 1.0 / self._fused.speed(runs).rate
        alone = sum([run.cost.solo_step_s for run in runs])
        gain = (
            max(1.0, alone / together) if len(runs) <= seats + 1e-9 else max(1.0, alone / together * seats / len(runs))
        )
        return speed._replace(rate=gain / seats)


class Rolled(NamedTuple):
    """Rolled holds what a roll-out of a windowing `fuse()` showed."""

    seconds: float
    """Mean time of a step."""
    fractions: tuple[float, ...]
    """Share of the steps each run was in, in the order of the runs."""
    real_tokens: float
    computed_tokens: float


class WindowPace:
    """A policy leaves residents out of steps, and a roll-out of its `fuse()` gives the rates.

    Fractions and step times come from a seeded 256-step roll-out, which is cached.
    """

    varies = True
    steps_apart = False

    def __init__(self, roll: Callable[[Sequence[Run]], Rolled | None], whole: Pace) -> None:
        self._roll = roll
        self._whole = whole
        self._fraction: dict[str, float] = {}
        self.rolled = 0
        """Roll-outs made, or taken from the cache."""

    def speed(self, runs: Collection[Run]) -> Speed:
        """Return the speed, where one unit is one fused step."""
        ordered = list(runs)
        rolled = self._roll(ordered)
        if rolled is None:
            for run in ordered:
                self._fraction[run.job.job_id] = self._whole.per_unit(run)
            return self._whole.speed(runs)
        self.rolled += 1
        for run, fraction in zip(ordered, rolled.fractions, strict=True):
            self._fraction[run.job.job_id] = max(fraction, 1e-9)
        return Speed(1.0 / rolled.seconds, rolled.real_tokens, rolled.computed_tokens, 1.0)

    def per_unit(self, run: Run) -> float:
        """Return the share of the steps that the run is in."""
        return self._fraction.get(run.job.job_id, 1.0)

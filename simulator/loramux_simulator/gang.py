"""Run a job on several devices at once.

A gang runs on all of its devices or on none. It makes the same step on each, at the pace of the
slowest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loramux_policies.loop.meters import Meters
from loramux_simulator.clock import Clock
from loramux_simulator.virtual_time import Run, VirtualClock


class GangRun:
    """A GangRun keeps a gang's own progress; it has no tag on any one device's virtual clock."""

    __slots__ = ("devices", "from_s", "moved", "per_unit", "rate", "run", "seen", "timer", "watches")

    def __init__(self, run: Run, devices: tuple[int, ...]) -> None:
        self.run = run
        self.devices = devices
        self.per_unit: dict[int, float] = {}
        """Micro-steps per unit of virtual time on each device; the gang does not move before every
        device has set its own.
        """
        self.rate = 0.0
        """Micro-steps per second."""
        self.from_s = 0.0
        """The rate holds from this time on."""
        self.timer = 0
        self.moved = 0.0
        """Micro-steps it has really moved, loading included."""
        self.seen: dict[int, float] = {}
        """How far it had moved when each device's meter was last advanced."""
        self.watches: list[float] = []
        """Micro-steps left at which a review is due."""

    def sync(self, now_s: float) -> None:
        """Bring the job's figures up to now."""
        run = self.run
        job, cost = run.job, run.cost
        if now_s <= self.from_s or self.rate <= 0.0:
            return
        gone = self.rate * (now_s - self.from_s)
        loading = min(run.debt_micro, gone)
        done = min(run.left_micro, gone - loading)
        self.moved += loading + done
        run.debt_micro -= loading
        run.left_micro -= done
        self.from_s = now_s
        job.done_steps += done / cost.accumulation
        job.attained_s += done * cost.solo_step_s

    def set_rate(self, now_s: float, rate: float, ready_s: float) -> None:
        """Go on at another rate, once every device is ready."""
        self.rate = rate
        self.from_s = max(now_s, ready_s)

    def lag(self, device_id: int, units: float, now_s: float) -> float:
        """Return how many micro-steps too many a device's meter counts for these units.

        They are those that slower companions did not let the device do.
        """
        self.sync(now_s)
        moved = self.moved - self.seen.get(device_id, 0.0)
        self.seen[device_id] = self.moved
        return units * self.per_unit.get(device_id, 0.0) - moved

    def watch(self, micro: float) -> None:
        """Ask for a review so many micro-steps from now."""
        self.watches.append(self.run.left_micro - micro)

    def next_watch(self) -> float:
        """Return the micro-steps from now to the first review."""
        return max(0.0, self.run.left_micro - max(self.watches))

    def pass_watch(self) -> None:
        """Drop the first review, which has come.

        Those that differ from it by rounding only are dropped with it.
        """
        reached = max(self.watches)
        self.watches = [left for left in self.watches if left < reached - 1e-12 * abs(reached)]

    def after_s(self, now_s: float, micro: float) -> float:
        """Return when the gang will have done so many micro-steps more, at the present rate.

        Before it has a rate, the rate of the job alone is taken.
        """
        rate = self.rate or 1.0 / self.run.cost.solo_step_s
        return max(now_s, self.from_s) + (self.run.debt_micro + micro) / rate


def count_off(
    device_id: int,
    units: float,
    now_s: float,
    gangs: Mapping[str, GangRun],
    runs: Mapping[str, Run],
    steps_apart: bool,
    meters: Meters,
) -> None:
    """Take off a device's meter what slower companions did not let its gangs do.

    The meter counts gangs at the device's own pace.
    """
    idle: dict[str, float] = {}
    for gang in gangs.values():
        cost = gang.run.cost
        lag = gang.lag(device_id, units, now_s)
        meters.no_tokens(device_id, lag * cost.real_tokens)
        if steps_apart:
            meters.no_steps(device_id, lag)
        elif pace := gang.per_unit.get(device_id, 0.0):
            idle[cost.base.key] = min(lag / pace, idle.get(cost.base.key, lag / pace))
    # A fused step takes place all the same where another job of its base is in it.
    for job_id, run in runs.items():
        if job_id not in gangs:
            idle.pop(run.cost.base.key, None)
    meters.no_steps(device_id, sum(idle.values()))


class GangTimers:
    """Sets the timers of gangs: a job on several devices goes at the pace of the slowest.

    `clocks`: of the devices by id. `watched` is called where a gang has attained what the policy
    watches for, `done` where it has done all its steps.
    """

    def __init__(
        self,
        clock: Clock,
        clocks: Sequence[VirtualClock],
        watched: Callable[[GangRun], None],
        done: Callable[[GangRun], None],
    ) -> None:
        self._clock, self._clocks = clock, clocks
        self._on_watched, self._on_done = watched, done

    def schedule(self, gang: GangRun) -> None:
        """Set the gang's pace and timers anew, as the pace of one of its devices has changed."""
        now_s = float(self._clock.env.now)
        gang.sync(now_s)
        gang.timer += 1
        clocks = {d: self._clocks[d] for d in gang.devices}
        rate = min(clock.rate * gang.per_unit.get(d, 0.0) for d, clock in clocks.items())
        gang.set_rate(now_s, rate, max(clock.at_s for clock in clocks.values()))
        if gang.rate > 0.0:
            end_s = gang.after_s(now_s, gang.run.left_micro)
            self._clock.at(end_s, self._done, (gang, gang.timer))
            if gang.watches:
                watch_s = gang.after_s(now_s, gang.next_watch()) + 1e-9
                self._clock.at(watch_s, self._watched, (gang, gang.timer))

    def _watched(self, event: Any) -> None:
        gang, timer = event.value
        if timer == gang.timer:
            gang.sync(float(self._clock.env.now))
            gang.pass_watch()
            self._on_watched(gang)

    def _done(self, event: Any) -> None:
        gang, timer = event.value
        if timer == gang.timer:
            self._on_done(gang)

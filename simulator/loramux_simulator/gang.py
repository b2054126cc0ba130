"""Run a job on several devices at once.

A gang runs on all of its devices or on none. It makes the same step on each, at the pace of the
slowest.
"""

from __future__ import annotations

from collections.abc import Mapping

from loramux_policies.loop.meters import Meters
from loramux_simulator.virtual_time import Run


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

"""Simulate at rate fidelity, for large traces: rates are constant between events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from loramux_policies.loop.job import Job
from loramux_policies.loop.meters import IDLE, Meters
from loramux_policies.loop.scheduler import Scheduler
from loramux_simulator.board import Board
from loramux_simulator.clock import Clock
from loramux_simulator.gang import GangRun, GangTimers, count_off
from loramux_simulator.paces import Pace
from loramux_simulator.rate_device import RateDevice, beyond_memory
from loramux_simulator.virtual_time import Run
from loramux_traces.arrays import Floats

SAME_WATCH = 1e-12
"""Relative: points of interest closer than this are one (they differ only by the rounding of the
clock).
"""


class RateEngine:
    """A backend of the decide-apply loop (contract: `loop.backend.Backend`).

    Over 300 lines: it is that contract and the timers behind it, on one state that a million jobs
    go through; parts of their own would cost a call per event.
    """

    def __init__(
        self,
        device_types: Sequence[int],
        pace: Callable[[int], Pace],
        meters: Meters,
        *,
        ooms: Callable[[Job, int], float] | None = None,
        separate: bool = False,
        charges: bool = True,
    ) -> None:
        self._clock = Clock()
        self._env = self._clock.env
        self.devices = [RateDevice(i, type_index) for i, type_index in enumerate(device_types)]
        clocks = [device.clock for device in self.devices]
        self._gangs = GangTimers(self._clock, clocks, self._gang_watched, self._gang_done)
        self._paces = [pace(type_index) for type_index in range(max(device_types) + 1)]
        self._meters = meters
        self._ooms = ooms
        self._separate = separate
        self._charges = charges
        self._dirty: dict[int, bool] = {}
        """Devices to look at after the decision. False: only a watch was added, so that a new timer
        is enough.
        """
        self._board: Board | None = None
        self._loop: Scheduler

    @property
    def paces(self) -> Sequence[Pace]:
        """One pace per device type."""
        return self._paces

    @property
    def now_s(self) -> float:
        return self._env.now

    def run(self, loop: Scheduler, arrivals: Iterator[Job]) -> None:
        """Run the whole trace, and settle at its end."""
        self._loop = loop
        self._clock.run(loop, arrivals, self._flush)
        self.settle()

    def at(self, t_s: float, call: Callable[[Any], None]) -> None:
        """Call back at that time."""
        self._clock.at(t_s, call, None)

    def settle(self) -> None:
        """Bring every device's totals up to now."""
        for device in self.devices:
            self._touch(device)

    # -- what the loop asks for

    def start(self, job: Job, devices: tuple[int, ...], share: float) -> None:
        """Load the job; it moves once its device has copied its state in."""
        if len(devices) > 1:
            self._start_gang(job, devices)
            return
        device_id = devices[0]
        device = self.devices[device_id]
        run = job.run = Run(job, job.cost_on(device.type_index))
        if device.seen_s != self._env.now:
            self._touch(device)
        device.runs[job.job_id] = run
        if self._charges:
            self._charge_load(device, run)
        self._dirty[device_id] = True
        run.start_tag = device.clock.virtual
        pace = self._paces[device.type_index]
        if not pace.varies:
            run.set_speed(pace.per_unit(run))
            device.clock.push_end(run)
        if self._board is not None:
            self._board.set_clock(device_id, device.clock)
            self._board.add(run, device_id)

    def _start_gang(self, job: Job, devices: tuple[int, ...]) -> None:
        run = Run(job, job.cost_on(self.devices[devices[0]].type_index))
        gang = job.run = GangRun(run, devices)
        for device_id in devices:
            device = self.devices[device_id]
            self._touch(device)
            device.runs[job.job_id] = run
            if self._charges:
                self._charge_load(device, run)
            if self._board is not None:
                self._board.set_clock(device_id, device.clock)
            self._dirty[device_id] = True
        run.debt_micro /= len(devices)  # its processes load at the same time
        for device_id in devices:
            self.devices[device_id].gangs[job.job_id] = gang

    def _charge_load(self, device: RateDevice, run: Run) -> None:
        cost, now_s = run.cost, self._env.now
        seconds = cost.load_s if run.job.done_steps == 0.0 else cost.pause_s
        if cost.overridden:
            device.clock.stall(now_s, seconds)
            return
        base = cost.base
        if self._separate:  # a process of its own loads while the others go on
            debt_micro = (seconds + base.load_s) / cost.solo_step_s
            run.debt_micro += debt_micro
            self._meters.no_work(device.device_id, debt_micro, cost.real_tokens)
            return
        if base.key not in device.bases:
            seconds += base.load_s
            for key in [key for key, users in device.bases.items() if users == 0]:
                del device.bases[key]
            device.bases[base.key] = 0
        device.bases[base.key] += 1
        if seconds > 0.0:
            device.clock.stall(now_s, seconds)

    def set_share(self, job: Job, share: float) -> None:
        """Change a running job's share of its seat."""
        for device_id in job.devices:
            self._touch(self.devices[device_id])
            self._dirty[device_id] = True
        if isinstance(job.run, GangRun):
            return
        device = self.devices[job.devices[0]]
        self._rebase(device, job.run, self._paces[device.type_index].per_unit(job.run))

    def _rebase(self, device: RateDevice, run: Run, per_unit: float) -> None:
        """Let the run go on at another speed; its end and its watches get new tags."""
        clock = device.clock
        run.rebase(clock.virtual, per_unit)
        clock.push_end(run)
        for micro in run.watches:  # one that is reached already is due now, not forgotten
            clock.push_watch(run, max(clock.virtual, run.tag_of(micro)))
        if self._board is not None:
            self._board.update(run)

    def stop(self, job: Job) -> None:
        """Take a running job off its devices; its state is copied to the host."""
        self.sync(job)
        gang = job.run if isinstance(job.run, GangRun) else None
        run: Run = gang.run if gang is not None else job.run
        for device_id in job.devices:
            device = self.devices[device_id]
            self._touch(device)
            if run.debt_micro > 0.0:
                gone = 0.0 if gang is not None else (device.clock.virtual - run.start_tag) * run.per_unit
                self._meters.no_work(device_id, -max(0.0, run.debt_micro - gone), run.cost.real_tokens)
            self._take_off(device, run)
            if self._charges and not self._separate and run.cost.pause_s > 0.0:
                device.clock.stall(self.now_s, run.cost.pause_s)
            if self._board is not None:
                self._board.set_clock(device_id, device.clock)
        self._retire(run, gang)

    def sync(self, job: Job) -> None:
        """Bring a running job's figures up to date."""
        run = job.run
        if isinstance(run, GangRun):
            run.sync(self.now_s)
            return
        now_s = self._env.now
        if run.synced_s == now_s:  # a decision looks at the same few residents again and again
            return
        run.synced_s = now_s
        cost = run.cost
        clock = self.devices[job.devices[0]].clock
        steps = (run.done_micro + run.progress(clock.read(now_s))) / cost.accumulation
        job.attained_s += (steps - job.done_steps) * cost.accumulation * cost.solo_step_s
        job.done_steps = steps

    def progress(self) -> tuple[Sequence[Job | None], Floats, Floats]:
        """Return attained and remaining solo seconds of all running jobs (kept in arrays)."""
        if self._board is None:
            self._board = Board(len(self.devices))
            for device in self.devices:
                self._board.set_clock(device.device_id, device.clock)
                for run in device.runs.values():
                    if run.job.job_id not in device.gangs:
                        self._board.add(run, device.device_id)
        return self._board.read(self.now_s)

    def finish_s(self, job: Job) -> float:
        """Return the predicted finish: the predicted steps left, at the present speed."""
        device = self.devices[job.devices[0]]
        self.sync(job)
        left = max(0.0, job.predicted_steps - job.done_steps) * job.cost_on(device.type_index).accumulation
        if isinstance(job.run, GangRun):
            return job.run.after_s(self.now_s, left)
        run: Run = job.run
        rate = device.clock.rate * run.per_unit
        if rate <= 0.0:
            return max(self.now_s, device.clock.at_s) + left * run.cost.solo_step_s
        return max(self.now_s, device.clock.at_s) + left / rate

    def review_at(self, t_s: float) -> None:
        """Call `decide` at that time."""
        self._clock.review_at(t_s)

    def review_when(self, job: Job, attained_s: float) -> None:
        """Call `decide` when the job has attained that much.

        This is one more tag on the virtual clock of its device.
        """
        device = self.devices[job.devices[0]]
        self.sync(job)
        micro = max(0.0, attained_s - job.attained_s) / job.cost_on(device.type_index).solo_step_s
        if isinstance(job.run, GangRun):
            job.run.watch(micro)
            self._dirty[device.device_id] = True
            return
        run: Run = job.run
        micro += job.done_steps * run.cost.accumulation
        run.watches = [known for known in run.watches if abs(known - micro) > SAME_WATCH * micro]
        run.watches.append(micro)
        device.clock.push_watch(run, max(device.clock.read(self.now_s), run.tag_of(micro)))
        if device.gangs:
            self._dirty[device.device_id] = True
        else:
            self._dirty.setdefault(device.device_id, False)

    # -- time

    def _touch(self, device: RateDevice) -> None:
        """Account for the time since the device was last looked at."""
        now_s = self._env.now
        if now_s != device.seen_s:  # an event looks at its device three times
            device.seen_s = now_s
            clock, gone = device.clock, 0.0
            if now_s > clock.at_s:  # as `advance` does, without the call
                gone = clock.rate * (now_s - clock.at_s)
                clock.virtual += gone
                clock.at_s = now_s
            if device.gangs:
                pace = self._paces[device.type_index]
                count_off(device.device_id, gone, now_s, device.gangs, device.runs, pace.steps_apart, self._meters)
            self._meters.advance(device.device_id, now_s, gone, device.speed, len(device.runs))

    def _flush(self) -> None:
        """Set new speeds and timers for every device that a decision changed."""
        now_s = self._env.now
        while self._dirty:
            dirty, self._dirty = self._dirty, {}
            for device_id, changed in dirty.items():
                if changed:
                    self._reschedule(self.devices[device_id], now_s)
                else:
                    self._set_timer(self.devices[device_id])
        self._meters.queue(now_s, self._loop.cluster.n_waiting)

    def _reschedule(self, device: RateDevice, now_s: float) -> None:
        clock, runs, board = device.clock, device.runs, self._board
        device_id = device.device_id
        self._meters.memory(device_id, now_s, self._loop.cluster.fleet[device_id].expected, len(runs))
        if not runs:
            device.timer += 1
            device.speed = IDLE
            clock.reset()
            if board is not None:
                board.set_clock(device_id, clock)
            return
        pace = self._paces[device.type_index]
        speed = device.speed = pace.speed(runs.values())
        if pace.varies:
            for run in runs.values():
                if run.job.job_id not in device.gangs:
                    self._rebase(device, run, pace.per_unit(run))
        clock.rate = speed[0]
        if board is not None:
            board.set_clock(device_id, clock)
        if device.gangs:
            for gang in device.gangs.values():
                gang.per_unit[device_id] = pace.per_unit(gang.run)
                self._gangs.schedule(gang)
        self._set_timer(device)
        if self._ooms is not None:
            newest = next(reversed(runs.values())).job
            need_bytes = self._ooms(newest, device_id)
            if need_bytes and newest.run is not None and newest.first_start_s >= 0:
                at_s = now_s + newest.cost_on(device.type_index).solo_step_s
                have_bytes = self._loop.cluster.fleet[device_id].capacity
                self._clock.at(at_s, self._out_of_memory, (newest, newest.run, need_bytes, have_bytes))

    def _set_timer(self, device: RateDevice) -> None:
        timer = device.timer = device.timer + 1
        clock = device.clock
        tag = clock.next_tag()
        if tag is not None:
            self._clock.at(clock.due_s(tag), self._reached, (device, timer, tag))

    def _out_of_memory(self, event: Any) -> None:
        job, run, need_bytes, have_bytes = event.value
        if job.run is run:  # else that stay has ended meanwhile
            self._loop.evict(job, beyond_memory(need_bytes, have_bytes))
            self._after_event()

    def _reached(self, event: Any) -> None:
        device, timer, tag = event.value
        if timer != device.timer:
            return
        now_s = self._env.now
        if device.seen_s != now_s:
            self._touch(device)
        changed = bool(device.gangs) or self._paces[device.type_index].varies
        loop = self._loop
        for run, is_end in device.clock.reach(tag, now_s):
            if is_end:
                changed = True
                self._finish(run)
            else:
                run.watches = [micro for micro in run.watches if run.tag_of(micro) > tag]
                loop.review()
        if changed:
            self._dirty[device.device_id] = True
        else:
            self._dirty.setdefault(device.device_id, False)
        if loop.due:  # `_after_event`, without the call: a million of them
            self._clock.request_decision()
        else:
            self._flush()

    def _after_event(self) -> None:
        if self._loop.due:
            self._clock.request_decision()
        else:
            self._flush()

    def _finish(self, run: Run, gang: GangRun | None = None) -> None:
        job = run.job
        cost = run.cost
        if gang is not None:
            gang.sync(self.now_s)
        job.attained_s += (job.true_steps - job.done_steps) * cost.accumulation * cost.solo_step_s
        job.done_steps = job.true_steps
        now_s = self._env.now
        for device_id in job.devices:
            device = self.devices[device_id]
            if device.seen_s != now_s:
                self._touch(device)
            self._take_off(device, run)
        self._retire(run, gang)
        self._loop.finish(job)

    def _take_off(self, device: RateDevice, run: Run) -> None:
        job_id = run.job.job_id
        del device.runs[job_id]
        if device.gangs:
            device.gangs.pop(job_id, None)
        cost, bases = run.cost, device.bases
        if bases and not cost.overridden:
            key = cost.base.key
            if key in bases:
                bases[key] -= 1
        self._dirty[device.device_id] = True

    def _retire(self, run: Run, gang: GangRun | None) -> None:
        run.epoch += 1
        if gang is not None:
            gang.timer += 1
        elif self._board is not None:
            self._board.remove(run)
        run.job.run = None

    def _gang_watched(self, gang: GangRun) -> None:
        self._dirty[gang.devices[0]] = True
        self._loop.review()
        self._after_event()

    def _gang_done(self, gang: GangRun) -> None:
        self._finish(gang.run, gang)
        self._after_event()

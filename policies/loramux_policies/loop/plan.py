"""The plan that a policy fills in is a what-if overlay on the fleet.

Every call is checked at once, so that a finished plan is valid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import index
from typing import NamedTuple

from loramux_policies.errors import PlanError
from loramux_policies.loop.fleet import Fleet
from loramux_policies.loop.job import DONE, WAITING, Job
from loramux_policies.views import Rule


class Start(NamedTuple):
    """This action starts or resumes a waiting job; a gang names several devices."""

    job: Job
    devices: tuple[int, ...]
    share: float


class Share(NamedTuple):
    """This action changes the share of a resident."""

    job: Job
    share: float


class Pause(NamedTuple):
    """This action takes a resident off its devices."""

    job: Job


class Reject(NamedTuple):
    """This action turns a waiting job away for good."""

    job: Job
    reason: str
    need_bytes: float
    have_bytes: float


Action = Start | Share | Pause | Reject


class _Seat(NamedTuple):
    """A seat says where this plan has put a job.

    No devices means that it waits, None in their place that it was turned away.
    """

    devices: tuple[int, ...] | None
    share: float


class DeltaPlan:
    """A delta plan holds actions in the order in which they were asked for.

    What is not named stays as it is (contract: `views.Plan`).
    """

    __slots__ = (
        "_actions",
        "_closed",
        "_jobs",
        "_live",
        "_moved",
        "_reviews",
        "_watches",
        "fleet",
        "now_s",
    )

    def __init__(self, fleet: Fleet, jobs: Mapping[str, Job], now_s: float) -> None:
        self.fleet = self._live = fleet
        """The fleet as this plan leaves it.

        It is the loop's own until the first action, and a fork of it from then on.
        """
        self._jobs = jobs
        self.now_s = now_s
        self._moved: dict[str, _Seat] = {}
        self._closed = False
        """Set by its view when `place()` has returned: no action is taken from then on."""
        self._actions: list[Action] = []
        self._reviews: list[float] = []
        self._watches: list[tuple[Job, float]] = []

    # -- what it holds, for the loop and observers; a policy cannot change it past the checks

    @property
    def actions(self) -> tuple[Action, ...]:
        return tuple(self._actions)

    @property
    def reviews(self) -> tuple[float, ...]:
        return tuple(self._reviews)

    @property
    def watches(self) -> tuple[tuple[Job, float], ...]:
        return tuple(self._watches)

    # -- questions

    def candidates(self, job_id: str, rule: Rule = "best-fit") -> Iterator[int]:
        """Return the devices that the job fits now, in the rule's order.

        For a gang they are those from which one can be formed.
        """
        job = self._job(job_id)
        if self.fleet.still_refuses(job):
            return iter(())
        if job.spec.num_gpus == 1:
            return self.fleet.candidates(job, rule)
        return (d for d in self.fleet.candidates(job, rule) if self.fleet.gang(job, d, rule) is not None)

    def fits(self, device_id: int, add: Sequence[str] = (), drop: Sequence[str] = ()) -> bool:
        """Return whether the device would hold its residents, less `drop`, plus `add`."""
        ledger = self.fleet[self._device(device_id)]
        added = [self._job(job_id) for job_id in add]
        if any(job.costs[ledger.type_index] is None for job in added):
            return False
        if len(added) == 1 and not drop:
            return ledger.has_room(added[0].cost_on(ledger.type_index))
        trial = ledger.copy()
        for job_id in drop:
            job = self._job(job_id)
            if job_id not in trial.jobs:
                raise PlanError(f"{job_id} is not on device {device_id}")
            trial.remove(job, self._seat(job).share)
        for i, job in enumerate(added, start=1):
            if job.job_id in trial.jobs or not trial.has_room(job.cost_on(ledger.type_index)):
                return False
            if i < len(added):
                trial.add(job, 1.0)
        return bool(added) or trial.used <= trial.capacity

    def free_bytes(self, device_id: int) -> float:
        """Return the capacity less the upper bound of the residents.

        It is -1 where every seat is taken.
        """
        return self.fleet[self._device(device_id)].free

    def free_seats(self, device_id: int) -> float:
        """Return the seats that are left on a device."""
        ledger = self.fleet[self._device(device_id)]
        return max(0.0, ledger.seats_max - ledger.seats)

    def residents(self, device_id: int) -> Sequence[str]:
        """Return the ids of the jobs on the device, in order of their start."""
        return tuple(self.fleet[self._device(device_id)].jobs)

    # -- actions

    def start(self, job_id: str, device_id: int, share: float = 1.0) -> None:
        """Start or resume a waiting job, or change the share of a resident of that device."""
        self._open()
        job = self._job(job_id)
        device_id = self._device(device_id)
        if not 0.0 < share <= 1.0:
            raise PlanError(f"share of {job_id} on device {device_id} must be in (0, 1], not {share!r:.80}")
        devices, old_share = self._moved.get(job_id) or _Seat(job.devices, job.share)
        if devices is None:
            raise PlanError(f"{job_id} was turned away earlier in this plan")
        if devices:
            if device_id != devices[0]:
                raise PlanError(
                    f"{job_id} is on device {devices[0]}: pause it before starting it on device {device_id} "
                    "(view.device_of(job) says where a job is)"
                )
            if share == old_share:  # it is there already: nothing to do
                return
            if self.fleet[device_id].seats + share - old_share > self.fleet[device_id].seats_max + 1e-9:
                raise PlanError(
                    f"no seat on device {device_id} for a share of {share} of {job_id}: "
                    f"{self.fleet[device_id].seats:g} of {self.fleet[device_id].seats_max:g} are taken "
                    "(plan.free_seats(device) says how many are left)"
                )
            fleet = self._written()
            for device in devices:
                fleet.set_share(device, share - old_share)
            self._actions.append(Share(job, share))
        else:
            devices = self._room(job, device_id, share)
            fleet = self._written()
            for device in devices:
                fleet.add(job, device, share)
            self._actions.append(Start(job, devices, share))
        self._moved[job_id] = _Seat(devices, share)

    def start_first(self, job_id: str, rule: Rule = "best-fit") -> int | None:
        """Start a waiting job on the first of its candidates, and return that device.

        None where the job has no candidate.
        """
        job = self._jobs.get(job_id) or self._job(job_id)
        fleet = self.fleet
        # This answers nine of ten calls of a window, whatever else holds of the job
        if fleet.refused.get(job.costs) == fleet.time:
            return None
        if self._closed or job.spec.num_gpus > 1 or job.state != WAITING or job_id in self._moved:
            device_id = next(self.candidates(job_id, rule), None)
            if device_id is not None:
                self.start(job_id, device_id)
            return device_id
        device_id = fleet.first(job, rule)
        if device_id is not None:  # it has just been found to have room: nothing to check again
            if fleet is self._live:
                fleet = self.fleet = fleet.fork()
            fleet.add(job, device_id, 1.0)
            devices = (device_id,)
            # Start(...) is a Python call around this, and one is made per job
            self._actions.append(tuple.__new__(Start, (job, devices, 1.0)))
            self._moved[job_id] = tuple.__new__(_Seat, (devices, 1.0))
        return device_id

    def pause(self, job_id: str) -> None:
        """Take a resident off its device; it keeps its progress and waits again."""
        self._open()
        job = self._job(job_id)
        seat = self._seat(job)
        if not seat.devices:
            raise PlanError(f"{job_id} is not running: nothing to pause (view.device_of(job) is None where it waits)")
        fleet = self._written()
        for device in seat.devices:
            fleet.remove(job, device, seat.share)
        self._actions.append(Pause(job))
        self._moved[job_id] = _Seat((), 1.0)

    def reject(self, job_id: str, reason: str, need_bytes: float, have_bytes: float) -> None:
        """Turn a waiting job away for good, with the bytes needed and available."""
        self._open()
        job = self._job(job_id)
        devices = self._seat(job).devices
        if devices != ():
            where = f"is on device {devices[0]}" if devices else "was turned away earlier in this plan"
            raise PlanError(f"{job_id} {where}: only a waiting job can be turned away (view.waiting(n) has those)")
        if not isinstance(reason, str) or not need_bytes >= 0.0 or not have_bytes >= 0.0:
            said = f"{reason!r:.80}, {need_bytes!r:.40}, {have_bytes!r:.40}"
            raise PlanError(f"reject({job_id}): a text and two numbers of bytes from 0 up, not {said}")
        self._actions.append(Reject(job, reason, need_bytes, have_bytes))
        self._moved[job_id] = _Seat(None, 0.0)

    def review_at(self, t_s: float) -> None:
        """Ask for `place()` to be called at a later time."""
        self._open()
        if not self.now_s < t_s < float("inf"):
            raise PlanError(f"review_at({t_s!r:.40}): not a time after now, {self.now_s} s (view.now_s)")
        self._reviews.append(t_s)

    def review_when(self, job_id: str, attained_s: float) -> None:
        """Ask for `place()` when a resident's attained service reaches this much."""
        self._open()
        job = self._job(job_id)
        if not self._seat(job).devices:
            raise PlanError(f"review_when({job_id}): not running (view.device_of(job) is None where it waits)")
        if not attained_s >= 0.0:
            raise PlanError(f"review_when({job_id}): not an attained service in seconds: {attained_s!r:.40}")
        self._watches.append((job, attained_s))

    # -- checks

    def _written(self) -> Fleet:
        """Return the fleet that belongs to this plan alone, forked if it is not yet."""
        if self.fleet is self._live:
            self.fleet = self._live.fork()
        return self.fleet

    def _open(self) -> None:
        if self._closed:
            raise PlanError("this plan belongs to a place() that has returned")

    def _job(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None or job.state == DONE:
            raise PlanError(
                f"no waiting or running job is called {job_id!r:.80} (view.waiting(n) and view.residents(device) have "
                f"them, {len(self._jobs)} in all)"
            )
        return job

    def _device(self, device_id: int) -> int:
        if not 0 <= device_id < len(self.fleet):
            raise PlanError(f"no device {device_id}; there are {len(self.fleet)}, from 0 (view.n_devices)")
        return index(device_id)  # numpy's integers are none in files

    def _seat(self, job: Job) -> _Seat:
        return self._moved.get(job.job_id) or _Seat(job.devices, job.share)

    def _room(self, job: Job, device_id: int, share: float) -> tuple[int, ...]:
        ledger = self.fleet[device_id]
        cost = job.costs[ledger.type_index]
        ask = f"plan.candidates('{job.job_id}') yields the devices that it fits"
        if cost is None:
            raise PlanError(
                f"{job.job_id} fits no device like device {device_id}, which has {ledger.capacity:.0f} bytes; {ask}"
            )
        if not ledger.has_room(cost, share):
            need, have = ledger.used_with(cost), ledger.capacity
            beside = ", ".join([*ledger.jobs][:3]) + (
                f" and {len(ledger.jobs) - 3} more" if len(ledger.jobs) > 3 else ""
            )
            raise PlanError(
                f"{job.job_id} does not fit device {device_id}: with it {need:.0f} of {have:.0f} bytes would be taken "
                f"(upper bounds), {ledger.seats:g} of {_seats(ledger.seats_max)} are, beside {beside or 'no job'}. "
                f"Before: plan.fits({device_id}, ['{job.job_id}']) is False, plan.free_bytes({device_id}) is "
                f"{ledger.free:.0f}; {ask}"
            )
        devices = self.fleet.gang(job, device_id)
        if devices is None:
            raise PlanError(
                f"{job.job_id} needs {job.spec.num_gpus} devices at once, device {device_id} and others of its type, "
                f"and they have no room for {ledger.used_with(cost):.0f} bytes each; {ask}"
            )
        return devices


def _seats(seats_max: float) -> str:
    return "any number of seats" if seats_max == float("inf") else f"{seats_max:g} seats"

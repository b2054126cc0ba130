"""What a run of fused steps is put together of: devices, the states of jobs, and a host that hears what happens.

`driver.StepDriver` is handed one of each. A recorded run (`replay`), training in this process and a
pool of workers differ in them and in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, Protocol

from loramux_policies.errors import PolicyError
from loramux_policies.loop.events import Event
from loramux_policies.loop.job import Job
from loramux_policies.stepping.fused_device import FusedDevice
from loramux_policies.stepping.live_run import LiveRun, P
from loramux_policies.views import FusedStep

Note = Callable[[dict[str, Any]], None]
"""Takes one row of the recorded stream."""
News = Callable[[], bool]
"""Whether something has happened that a wait should end for."""


class StepTimes(NamedTuple):
    """When a fused step began and ended, in seconds from the start of the run, and how it went."""

    began_s: float
    ended_s: float
    out_of_memory: bool
    scale: float | None = None
    """New ratio of the bound on dynamic bytes to their expected value; None: unchanged. (The online
    refit sets it.)
    """


class End(NamedTuple):
    """How a job ends: with FINISH or DIVERGE, and why."""

    event: Event
    detail: str


class StepDevice(Generic[P]):
    """One device and the step it is in."""

    def __init__(self, fused: FusedDevice[LiveRun[P]], type_index: int) -> None:
        self.fused = fused
        self.type_index = type_index
        self.step: FusedStep | None = None
        """The step under way; None at a step boundary."""
        self.runs: list[LiveRun[P]] = []
        """The residents that are in the step."""
        self.seconds = 0.0
        """Mean of recent steps, for `finish_s`."""
        self.lengths: list[tuple[int, ...]] = []
        """Row lengths of the step's entries, where it is recorded."""
        self.left_early = False
        """Whether somebody left the step while it was under way."""


class Devices(Protocol[P]):
    """Carries out the fused steps of a run's devices, and is the clock of the run."""

    def begin(self) -> float:
        """Return the first instant of the run."""

    def launch(self, device: StepDevice[P], predicted_s: float) -> None:
        """Begin `device.step`. A device in this process has trained it when the call returns."""

    def land(self, idle: Callable[[], object]) -> tuple[StepDevice[P], StepTimes | None]:
        """Wait for one of the steps under way to end, calling `idle` now and then, and say how it went.

        The training of its jobs has moved on, unless it ran out of memory. None in place of the
        times: the device is gone.
        """

    def sooner(self, until_s: float, news: News) -> float | None:
        """Wait for a step to end, but not beyond `until_s` (asked only where there are several devices).

        Returns the instant at which the run goes on where no step has ended, else None.
        """

    def another(self, now_s: float) -> bool:
        """Whether another step has ended by that instant."""

    def wait(self, until_s: float, news: News) -> float:
        """Wait until then or until there is news, with no step under way; return the instant."""


class OneDevice(Generic[P]):
    """What `Devices` come down to where there is one: its step is waited for, whatever comes."""

    def sooner(self, until_s: float, news: News) -> float | None:
        """Return None: one device answers to nothing in the middle of its step."""
        return None

    def another(self, now_s: float) -> bool:
        """Return False: no second step can have ended."""
        return False


class States(Protocol[P]):
    """Where the states of jobs are, and how they get onto a device and off it."""

    def bring(self, job: Job, device: StepDevice[P]) -> P:
        """Return the state of a job that starts on the device; it is there when the next step begins.

        A state that is still on its way (`on_its_way`) stays there.
        """

    def take_away(self, job: Job) -> None:
        """Have the state of a job here that leaves its device at a step boundary."""

    def end_of(self, state: P) -> End | None:
        """Say how the job has ended, if it has."""

    def at_rest(self, job_id: str) -> bool:
        """Whether the job's state can be saved now, all of it being here."""

    def leaves_early(self, job_id: str) -> bool:
        """Whether a job that is to leave in the middle of a step goes without waiting for its end."""

    def follow(self, job: Job, device: StepDevice[P], *, in_step: bool) -> None:
        """Have the state of a job that leaves early sent here after the step (that the job may be in)."""

    def on_its_way(self, job_id: str) -> bool:
        """Whether the state has still to come from a step that the job has left early."""

    def lost(self, runs: Iterable[LiveRun[P]]) -> None:
        """The device of these residents is gone: those that were on it go on as they were last saved."""


class StatesHere(Generic[P]):
    """What `States` come down to where every state is in this process: nobody leaves in mid-step."""

    def at_rest(self, job_id: str) -> bool:
        """Return True: nothing happens between two steps."""
        return True

    def leaves_early(self, job_id: str) -> bool:
        """Return False: the step that the job is in is waited for."""
        return False

    def follow(self, job: Job, device: StepDevice[P], *, in_step: bool) -> None:
        """Never called, as nobody leaves early."""
        raise AssertionError(f"{job.job_id} left in the middle of a step")

    def on_its_way(self, job_id: str) -> bool:
        """Return False: no state travels."""
        return False

    def lost(self, runs: Iterable[LiveRun[P]]) -> None:
        """Never called, as the device is this process."""
        raise AssertionError("the device of this process cannot be gone")


class Host(Generic[P]):
    """Hears what happens in a run and may answer. This one lets everything pass; others override."""

    @property
    def expecting(self) -> bool:
        """Whether a device will be there that is not there now."""
        return False

    def residents_change(self, device: StepDevice[P]) -> None:
        """A job is about to join the device or to leave it; called once more at the end of the run."""

    def joined(self, run: LiveRun[P]) -> None:
        """The job is on its device's books."""

    def stopped(self, device: StepDevice[P]) -> None:
        """The loop has taken a job off the device."""

    def ended(self, run: LiveRun[P]) -> None:
        """The job has ended, and the loop knows."""

    def boundary(self) -> bool:
        """The loop has decided at a step boundary. True: something has changed, it must decide again."""
        return False

    def devices_back(self) -> bool:
        """Whether a device that was gone is there again, so that the loop must decide."""
        return False

    def device_gone(self, device: StepDevice[P], in_step: Mapping[str, float], *, ending: bool) -> None:
        """The device is gone, and its jobs wait again.

        `in_step`: the jobs of the step that it was in, with the optimizer steps that they had done;
        `ending`: the run is about to end, so that nobody needs the device any more.
        """

    def news(self) -> bool:
        """Whether a wait should end, because something has come in."""
        return False

    def excused(self, error: PolicyError) -> bool:
        """Whether a policy's failure has been dealt with (`use_policy`): the turn begins anew."""
        return False

    def stalled(self) -> bool:
        """Every device is empty, jobs wait, and the policy asked for no review: whether to ask it again."""
        return False

    def alone_out_of_memory(self, job: Job) -> Job | None:
        """The job ran out of memory with nobody beside it: the same with smaller steps, or None."""
        return None

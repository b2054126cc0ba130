"""This module defines the parts that a run of fused steps is put together from.

They are devices, the states of jobs, and a host that hears what happens. `driver.StepDriver` is
handed one of each. A recorded run (`replay`), training in this process and a pool of workers differ
in these parts and in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, Protocol

from loramux_policies.errors import PolicyError
from loramux_policies.loop.events import Event
from loramux_policies.loop.job import Job
from loramux_policies.stepping.fused_device import FusedDevice
from loramux_policies.stepping.live_run import LiveRun, P
from loramux_policies.views import FusedStep
from loramux_traces.errors import StateError

Note = Callable[[dict[str, Any]], None]
"""Takes one row of the recorded stream."""
News = Callable[[], bool]
"""Returns whether something has happened that a wait should end for."""


class StepTimes(NamedTuple):
    """Says when a fused step began and ended, and how it went.

    The times are in seconds from the start of the run.
    """

    began_s: float
    ended_s: float
    out_of_memory: bool
    scale: float | None = None
    """New ratio of the bound on dynamic bytes to their expected value; None: unchanged.

    The online refit sets it.
    """


class Arrival(NamedTuple):
    """Says that the state of a resident has come (`States.bring` gives it), or cannot be had."""

    job_id: str
    fault: str = ""
    """Why the state cannot be had; empty where it has come."""
    out_of_memory: bool = False


class End(NamedTuple):
    """Says how a job ends: with FINISH or DIVERGE, and why."""

    event: Event
    detail: str


class StepDevice(Generic[P]):
    """Holds one device and the step that it is in."""

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
        """Begin `device.step`.

        A device in this process has trained the step when the call returns.
        """

    def land(self, idle: Callable[[], object]) -> tuple[StepDevice[P], StepTimes | None]:
        """Wait for one of the steps under way to end, and say how it went.

        It calls `idle` now and then while it waits. The training of the step's jobs has moved on,
        unless the step ran out of memory. The times are None where the device is gone.
        """

    def sooner(self, until_s: float, news: News) -> float | None:
        """Wait for a step to end, but not beyond `until_s`.

        The driver asks for this only where there are several devices. It returns the instant at
        which the run goes on where no step has ended, else None.
        """

    def another(self, now_s: float) -> bool:
        """Return whether another step has ended by that instant."""

    def wait(self, until_s: float, news: News) -> float:
        """Wait until `until_s` or until there is news; return the instant.

        No step is under way.
        """


class OneDevice(Generic[P]):
    """Implements the part of `Devices` that is simple where there is one device.

    Its step is waited for, whatever comes.
    """

    def sooner(self, until_s: float, news: News) -> float | None:
        """Return None: a single device does not react to anything in the middle of its step."""
        return None

    def another(self, now_s: float) -> bool:
        """Return False: no second step can have ended."""
        return False


class States(Protocol[P]):
    """Says where the states of jobs are, and how they get onto a device and off it."""

    def bring(self, job: Job, device: StepDevice[P]) -> P | None:
        """Return the state of a job that starts on the device; it is there for the next step.

        None where the state is still being made or read, or is in a step elsewhere: the job takes
        part once `arrived` has named it.
        """

    def arrived(self) -> list[Arrival]:
        """Return whose states have come since, or cannot be had; nobody is named twice."""

    def news(self) -> bool:
        """Return whether `arrived` has somebody to name."""

    def take_away(self, job: Job) -> None:
        """Bring here the state of a job that leaves its device at a step boundary."""

    def end_of(self, state: P) -> End | None:
        """Say how the job has ended, if it has."""

    def at_rest(self, job_id: str) -> bool:
        """Return whether the job's state can be saved now, because all of it is here."""

    def leaves_early(self, job_id: str) -> bool:
        """Return whether a job that leaves in the middle of a step need not wait for its end."""

    def follow(self, job: Job, device: StepDevice[P], *, in_step: bool) -> None:
        """Have the state of a job that leaves early sent here after the step.

        The job may be in that step or not (`in_step`).
        """

    def on_its_way(self, job_id: str) -> bool:
        """Return whether the state has still to come from a step that the job has left early."""

    def lost(self, device: StepDevice[P]) -> Mapping[str, float]:
        """Have the residents of a device that is gone go on from their last saved states.

        This concerns those whose state was on the device. Returns the jobs whose states were being
        taken in there, with their optimizer steps: the device may be gone because of them.
        """


class StatesHere(Generic[P]):
    """Implements the part of `States` that is simple where every state is in this process.

    No job leaves in the middle of a step.
    """

    def arrived(self) -> list[Arrival]:
        """Return nobody: no state is waited for."""
        return []

    def news(self) -> bool:
        """Return False: no state is waited for."""
        return False

    def at_rest(self, job_id: str) -> bool:
        """Return True: nothing happens between two steps."""
        return True

    def leaves_early(self, job_id: str) -> bool:
        """Return False: the driver waits for the step that the job is in."""
        return False

    def follow(self, job: Job, device: StepDevice[P], *, in_step: bool) -> None:
        """Raise AssertionError: this is never called, as no job leaves early."""
        raise AssertionError(f"{job.job_id} left in the middle of a step")

    def on_its_way(self, job_id: str) -> bool:
        """Return False: no state travels."""
        return False

    def lost(self, device: StepDevice[P]) -> Mapping[str, float]:
        """Raise AssertionError: this is never called, as the device is this process."""
        raise AssertionError("the device of this process cannot be gone")


class Host(Generic[P]):
    """Hears what happens in a run and may answer.

    This class lets everything pass; subclasses override its methods.
    """

    @property
    def expecting(self) -> bool:
        """Whether a device will be there that is not there now."""
        return False

    def residents_change(self, device: StepDevice[P]) -> None:
        """Hear that a job is about to join the device or to leave it.

        This is called once more at the end of the run.
        """

    def joined(self, run: LiveRun[P]) -> None:
        """Hear that the job is on its device's books."""

    def without_state(self, job: Job, arrival: Arrival) -> None:
        """Hear that the state of a job that has started cannot be had: take the job off.

        Raises StateError where nobody can.
        """
        raise StateError(f"{job.job_id}: {arrival.fault}")

    def stopped(self, device: StepDevice[P]) -> None:
        """Hear that the loop has taken a job off the device."""

    def ended(self, run: LiveRun[P]) -> None:
        """Hear that the job has ended, and that the loop knows."""

    def boundary(self) -> bool:
        """Hear that the loop has decided at a step boundary; return whether it must decide again.

        True means that something has changed.
        """
        return False

    def devices_back(self) -> bool:
        """Return whether a device that was gone is there again, so that the loop must decide."""
        return False

    def device_gone(self, device: StepDevice[P], in_step: Mapping[str, float], *, ending: bool) -> None:
        """Hear that the device is gone and that its jobs wait again.

        `in_step`: the jobs of the step that it was in, with the optimizer steps that they had done;
        `ending`: the run is about to end, so that nobody needs the device any more.
        """

    def news(self) -> bool:
        """Return whether a wait should end, because something has come in."""
        return False

    def excused(self, error: PolicyError) -> bool:
        """Return whether a policy's failure has been dealt with (`use_policy`).

        The turn then begins anew.
        """
        return False

    def stalled(self) -> bool:
        """Return whether to ask the policy again when nothing moves.

        That is the case where every device is empty, jobs wait, and the policy asked for no review.
        """
        return False

    def alone_out_of_memory(self, job: Job) -> Job | None:
        """Return the job with smaller steps, or None, after it ran out of memory on its own."""
        return None

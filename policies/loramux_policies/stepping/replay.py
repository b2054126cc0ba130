"""This module takes a recorded run's decisions again, without a device.

It runs the decide-apply loop on a recorded stream. The policy is asked the same questions at the
same instants, so it must answer the same. With another policy, or another version of one, the two
decision logs show where they part. `on_plan` sees every view and plan on the way (`explain.why`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from loramux_policies.errors import LeftTheRecord
from loramux_policies.loop.asking import OnPlan
from loramux_policies.loop.events import Event
from loramux_policies.loop.intake import Intake
from loramux_policies.loop.job import Job
from loramux_policies.loop.ledger import ledger_of
from loramux_policies.loop.recorder import Recorder
from loramux_policies.loop.scheduler import Scheduler
from loramux_policies.policy import Policy
from loramux_policies.stepping.contracts import (
    Arrival,
    End,
    Host,
    News,
    OneDevice,
    StatesHere,
    StepDevice,
    StepTimes,
)
from loramux_policies.stepping.driver import StepDriver
from loramux_policies.stepping.inbox import Arrivals
from loramux_policies.stepping.residents import Residents
from loramux_policies.stepping.stream import Moment, Story, Stream
from loramux_profiles.cost import CostModel
from loramux_profiles.devices import DeviceProfile
from loramux_traces.job import JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Holds what was decided this time."""

    events: list[dict[str, Any]]
    """Rows in the form of the recorded run's events.jsonl."""
    left: str
    """Where and how the decisions led away from the record, which ended the replay.

    Examples are a row that nobody trained on, or a step where the device was empty. It is empty
    where the decisions did not lead away.
    """


class RecordedJob:
    """Holds a job's data cursor in its recorded rows (contract: `live_run.DataCursor`)."""

    def __init__(self, job_id: str, batch_size: int, story: Story) -> None:
        self._job_id, self._batch_size, self._story = job_id, batch_size, story
        self._rows = 0

    @property
    def rows_done(self) -> int:
        """Rows of the optimizer step in progress that have been trained on."""
        return self._rows % self._batch_size

    @property
    def progress_steps(self) -> float:
        """Optimizer steps done; the one in progress counts by its rows."""
        # the runtime counts this way: a plain quotient would differ from it in the last bit
        return self._rows // self._batch_size + self.rows_done / self._batch_size

    @property
    def p_stop(self) -> float:
        """Probability as it was recorded after the last step that gave one."""
        return self._story.p_stop.get(self._rows, 0.0)

    def lengths(self, rows: int) -> tuple[int, ...]:
        """Return the tokens of the next rows; LeftTheRecord where none were recorded."""
        count = min(rows, self._batch_size - self.rows_done)
        found = self._story.lengths[self._rows : self._rows + count]
        if len(found) < count:
            raise LeftTheRecord(f"the record does not say how long row {self._rows + len(found)} of {self._job_id} is")
        return found

    def move(self, rows: int) -> None:
        """Note that a step with that many of its rows has run."""
        self._rows += rows

    def rewind(self) -> None:
        """Go back to the first row of the step in progress."""
        self._rows -= self.rows_done

    @property
    def end(self) -> End | None:
        """How the job ends at this place in the record; None where it does not."""
        story = self._story
        if story.end_rows is None or self._rows < story.end_rows:
            return None
        return End(Event.DIVERGE, story.diverged) if story.diverged else End(Event.FINISH, "")


class RecordedStates(StatesHere[RecordedJob]):
    """Holds the jobs of a stream, each at its place in the record.

    One whose state was loading when it started takes part when it did in the record.
    """

    def __init__(self, stream: Stream, batch_sizes: Mapping[str, int], moments: Moments) -> None:
        self._loading, self._moments = stream.loading, moments
        self._coming: dict[str, int | None] = {}
        """Jobs that are waited for, with the moment at which each takes part."""
        self._here: set[str] = set()
        """Jobs that have been waited for, and whom the driver brings now."""
        nothing = Story(lengths=(), p_stop={})
        self._jobs = {
            job_id: RecordedJob(job_id, rows, stream.jobs.get(job_id, nothing)) for job_id, rows in batch_sizes.items()
        }

    def bring(self, job: Job, device: StepDevice[RecordedJob]) -> RecordedJob | None:
        """Return the job as it is in the record."""
        job_id, start = job.job_id, (job.job_id, self._moments.passed)
        if job_id in self._here or start not in self._loading:
            self._here.discard(job_id)
            self._coming.pop(job_id, None)
            return self._jobs[job_id]
        self._coming[job_id] = self._loading[start]
        return None

    def arrived(self) -> list[Arrival]:
        """Return who takes part from this moment of the record on."""
        passed = self._moments.passed
        come = [job_id for job_id, at in self._coming.items() if at is not None and at <= passed]
        for job_id in come:
            del self._coming[job_id]
        self._here.update(come)
        return [Arrival(job_id) for job_id in come]

    def take_away(self, job: Job) -> None:
        """Do nothing: the state is never elsewhere."""

    def end_of(self, state: RecordedJob) -> End | None:
        """Say how the job ended in the record, where it did."""
        return state.end


class RecordedDevice(OneDevice[RecordedJob]):
    """Acts as a device whose steps take the time that they took, and fail where they failed."""

    def __init__(self, stream: Stream, moments: Moments, over: Callable[[], None]) -> None:
        self._begin_s, self._stopped = stream.begin_s, stream.stopped
        self._moments = moments
        self._over = over
        """Called where the recorded run was ended from outside."""
        self._device: StepDevice[RecordedJob]
        """The device with the step under way."""
        self._now_s = stream.begin_s

    def begin(self) -> float:
        """Return the first recorded instant."""
        return self._begin_s

    def launch(self, device: StepDevice[RecordedJob], predicted_s: float) -> None:
        """Note whose step it is; the record says how it went."""
        self._device = device

    def land(self, idle: Callable[[], object]) -> tuple[StepDevice[RecordedJob], StepTimes]:
        """Return the times of the recorded step."""
        device = self._device
        assert device.step is not None
        moment = self._next("step")
        assert moment.began_s is not None
        if not moment.out_of_memory:
            for run, entry in zip(device.runs, device.step.entries, strict=True):
                run.training.move(entry.rows)
        return device, StepTimes(moment.began_s, moment.ended_s, moment.out_of_memory, moment.scale)

    def wait(self, until_s: float, news: News) -> float:
        """Return the instant at which the recorded run went on."""
        return self._next("wait").ended_s

    def _next(self, kind: str) -> Moment:
        moment = self._moments.next(kind, self._now_s)
        self._now_s = moment.ended_s
        if self._stopped and self._moments.over:
            self._over()
        return moment


class Moments:
    """Gives the moments of a stream one by one."""

    def __init__(self, stream: Stream) -> None:
        self._moments = stream.moments
        self._next = 0

    @property
    def passed(self) -> int:
        """Number of moments that have been given."""
        return self._next

    @property
    def over(self) -> bool:
        """Whether no moment is left."""
        return self._next == len(self._moments)

    def next(self, kind: str, now_s: float) -> Moment:
        """Return the next moment.

        LeftTheRecord where it is not of the kind (step or wait) that the run has come to: the run
        has left the record.
        """
        if self.over:
            raise LeftTheRecord(f"at {now_s:.6f} s the record is over, and the run goes on with a {kind}")
        moment = self._moments[self._next]
        recorded = "wait" if moment.began_s is None else "step"
        if recorded != kind:
            raise LeftTheRecord(f"at {now_s:.6f} s the record goes on with a {recorded}, the run with a {kind}")
        self._next += 1
        return moment


def replay(
    events: Iterable[Mapping[str, Any]],
    specs: Sequence[JobSpec],
    policy: Policy,
    profile: DeviceProfile,
    *,
    max_resident: float = inf,
    on_plan: OnPlan | None = None,
) -> Replay:
    """Decide a recorded run again; compare `stream.decisions` of both.

    `specs`, `policy`, `profile` and `max_resident` are as in the run. StateError where `events`
    hold no stream.
    """
    rows = {spec.job_id: spec.batch_size for spec in specs}
    ordered = sorted(specs, key=lambda spec: (spec.submit_s, spec.job_id))
    stream = Stream.of(events, rows)
    cost = CostModel(profile)
    recorder = Recorder(ordered, lambda: driver.now_s, [0], events=True, segments=False)
    residents: Residents[RecordedJob] = Residents(policy)
    moments = Moments(stream)
    device = RecordedDevice(stream, moments, lambda: driver.request_stop())
    states = RecordedStates(stream, rows, moments)
    driver = StepDriver(residents, device, states, note=recorder.note)
    ledger = ledger_of(cost, max_resident)
    loop = Scheduler(policy, [ledger], driver, max_resident=max_resident, listener=recorder.hear, on_plan=on_plan)
    intake = Intake([cost], [1], oracle=False, unschedulable=recorder.unschedulable)
    # a job came when its rows had been read, which no policy has decided
    came = stream.arrived
    indexed = sorted(enumerate(ordered), key=lambda pair: came.get(pair[1].job_id, (pair[1].submit_s, pair[0])))
    jobs: Iterator[Job] = (job for index, spec in indexed if (job := intake.job(index, spec)) is not None)
    arrives_s: Callable[[Job], float] = lambda job: came.get(job.job_id, (job.spec.submit_s, 0))[0]
    left = ""
    try:
        driver.run(loop, Arrivals(loop, jobs, arrives_s), Host())
    except LeftTheRecord as error:
        left = str(error)
    return Replay(events=recorder.log() or [], left=left)

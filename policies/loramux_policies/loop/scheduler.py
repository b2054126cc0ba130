"""This is the one decide-apply loop, for simulated and for real devices alike.

Events go in (`arrive`, `finish`, `evict`); `decide` asks the policy, checks its plan and has the
backend carry it out. Nothing here knows which backend it drives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from loramux_policies.errors import PolicyError, let_through
from loramux_policies.loop.asking import OnPlan, ask
from loramux_policies.loop.backend import Backend
from loramux_policies.loop.blame import check_policy, wrong_order
from loramux_policies.loop.cluster import Cluster
from loramux_policies.loop.events import ARRIVE, FAIL, FINISH, LOST, OOM, PAUSE, REJECT, RESUME, START, Event
from loramux_policies.loop.job import DONE, RUNNING, WAITING, Job
from loramux_policies.loop.ledger import SEAT_SLACK, Ledger
from loramux_policies.loop.live_view import LiveView
from loramux_policies.loop.plan import Action, DeltaPlan, Pause, Reject, Share, Start
from loramux_policies.policy import Policy

OOM_RETRIES: Final = 3
OOM_RAISE: Final = 0.02
"""An out-of-memory raises the device's bound by this share of the activations.

The raise counts wherever several jobs meet.
"""
OOM_RATE: Final = 0.01
"""Each stay that ends well lowers the bound again by OOM_RAISE * OOM_RATE.

It never goes below the profile's own bound. So it settles where one stay in a hundred runs out
(adaptive conformal inference, Gibbs and Candes 2021).
"""
SETTLE_ROUNDS: Final = 64
"""The policy is asked at most so many times before the clock moves on.

It is asked again where its plan started jobs out of a cut window.
"""

Listener = Callable[[Event, Job, tuple[int, ...], str], None]
"""Called with (event, job, devices, detail) after each event."""


def _nobody(event: Event, job: Job, devices: tuple[int, ...], detail: str) -> None:
    """Ignore the event; this is the listener of a run that has none."""


class Scheduler:
    """A scheduler holds the cluster of one run and the policy that decides over it.

    The cluster is the jobs, the queue and the fleet.

    Over 300 lines: every event that may change a job is one short method here, so that one class
    keeps queue, fleet and job states in step.
    """

    def __init__(
        self,
        policy: Policy,
        ledgers: Sequence[Ledger],
        backend: Backend,
        *,
        max_resident: float = float("inf"),
        listener: Listener | None = None,
        on_plan: OnPlan | None = None,
    ) -> None:
        check_policy(policy)
        self.policy = policy
        for ledger in ledgers:
            ledger.seats_max = min(ledger.seats_max, policy.seats)
        self.backend = backend
        self._seats_wanted = max_resident
        """Seats per device that the user allows; the policy may want fewer."""
        self.cluster = Cluster(policy.order, ledgers, backend, min(max_resident, policy.seats))
        self.decisions = 0
        self._tell = listener or _nobody
        self._on_plan = on_plan
        """Called with the view, still open, and the plan of every decision (tests, recording)."""
        self._arrived: list[str] = []
        self._finished: list[str] = []
        self._paused: list[str] = []
        self._freed: list[int] = []
        self._due = False
        self._barrier: tuple[object, ...] | None = None
        """Key of the last waiting job that was looked at: arrivals behind it change nothing."""

    # -- events

    def arrive(self, job: Job) -> bool:
        """Take in a job that was submitted, and return whether `decide` must be called for it."""
        self.cluster.active[job.job_id] = job
        try:
            self._put(job)
        finally:
            # The job has arrived even where the policy's order fails on it, because another policy
            # may take over
            self._tell(ARRIVE, job, (), "")
            self._arrived.append(job.job_id)
        if self._barrier is None or not self._behind(job, self._barrier):
            self._due = True
        return self._due

    def finish(self, job: Job) -> None:
        """End a running job that has done all its steps.

        The backend has brought it up to date.
        """
        cluster, fleet = self.cluster, self.cluster.fleet
        devices, share = job.devices, job.share
        for device in devices:
            ledger = fleet[device]
            if ledger.raised > 0.0:  # before it leaves: the totals made then use the new bound
                ledger.raised = max(0.0, ledger.raised - OOM_RAISE * OOM_RATE)
            fleet.remove(job, device, share)
        cluster.leave(job)
        job.state = DONE
        del cluster.active[job.job_id]
        self._finished.append(job.job_id)
        self._freed.extend(devices)
        self._due = True
        self._tell(FINISH, job, devices, "")
        if cluster.apart:
            self._join_again(job.job_id)

    def evict(self, job: Job, detail: str) -> None:
        """Let a job wait again because a step with it ran out of memory.

        The device's bound rises. After a few times alone on its device the job fails. After a few
        times beside others it is not to blame (it was only the newest): it waits until all of them
        have ended.
        """
        self.backend.stop(job)
        beside: set[str] = set()
        for device in job.devices:
            self.cluster.fleet[device].raised += OOM_RAISE
            beside |= self.cluster.fleet[device].jobs.keys()
        beside.discard(job.job_id)
        devices = self._leave(job)
        job.oom_events += 1
        job.oom_alone += not beside
        self._due = True
        self._tell(OOM, job, devices, detail)
        if job.oom_alone > OOM_RETRIES:
            self.drop(job, FAIL, f"out of memory {job.oom_events} times: {detail}")
            return
        self._paused.append(job.job_id)
        if beside and (job.oom_events - job.oom_alone) % (OOM_RETRIES + 1) == 0:
            job.apart = beside
            self.cluster.apart.append(job)
            job.state, job.devices, job.share, job.last_stop_s = WAITING, (), 1.0, self.backend.now_s
            return
        self._enqueue(job)

    def _join_again(self, ended: str) -> None:
        """Put each job back into the queue that waited for the job that ended, and for no other."""
        for job in list(self.cluster.apart):
            job.apart.discard(ended)
            if not job.apart:
                self.cluster.apart.remove(job)
                self._enqueue(job)

    def fail(self, job: Job, event: Event, detail: str) -> None:
        """End a running job that has not done its steps.

        The backend has taken it off its device already.
        """
        devices = self._leave(job)
        self.drop(job, event, detail, devices)

    def drop(self, job: Job, event: Event, detail: str, devices: tuple[int, ...] = ()) -> None:
        """End a job that is neither waiting in the queue nor running.

        `devices` says where it ran until now.
        """
        job.state = DONE
        self.cluster.active.pop(job.job_id, None)
        self._due = True
        self._tell(event, job, devices, detail)
        if self.cluster.apart:
            self._join_again(job.job_id)

    def withdraw(self, job: Job, event: Event, detail: str = "") -> None:
        """Take a waiting or running job out, as a user asked.

        It goes for good (`cancel`), or until it arrives again (`hold`).
        """
        devices: tuple[int, ...] = ()
        if job.state == RUNNING:
            self.backend.stop(job)
            devices = self._leave(job)
            job.last_stop_s = self.backend.now_s
        elif job in self.cluster.apart:
            self.cluster.apart.remove(job)
        elif job.state == WAITING:
            self._take(job)
        job.share = 1.0
        self.drop(job, event, detail, devices)

    def reprice(self, job: Job, like: Job) -> None:
        """Give a job in the queue the costs of `like`, because its micro-batch has changed.

        What the job ran out of memory with is forgotten.
        """
        self._take(job)
        job.oom_alone = 0
        job.costs, job.need_min, job.need_bytes = like.costs, like.need_min, like.need_bytes
        job.seen = None
        self._due = True
        self._put(job)

    def review(self) -> None:
        """Note that a review which the policy asked for is due."""
        self._due = True

    def set_capacity(self, device_id: int, capacity_bytes: float) -> None:
        """Give the device more or less memory than it had.

        Its newest residents wait again until the others fit.
        """
        self.cluster.fleet.set_capacity(device_id, capacity_bytes)
        self._freed.append(device_id)
        self._due = True
        while len(residents := list(self.cluster.fleet[device_id].jobs.values())) > 0:
            if self.cluster.fleet[device_id].used <= capacity_bytes:
                break
            self._push_out(residents[-1], "the device has less memory than it had")

    def use_policy(self, policy: Policy) -> None:
        """Go by another policy from now on.

        What a plan of the old policy left half done is put right from the jobs' states.
        """
        check_policy(policy)
        self.policy = policy
        self._barrier = None
        self.cluster.reorder(policy.order, min(self._seats_wanted, policy.seats))
        waiting = [
            job for job in self.cluster.active.values() if job.state == WAITING and job not in self.cluster.apart
        ]
        for job in [*waiting, *self.cluster.running.values()]:
            job.seen = None
            self._put(job)
        # Residents do not wait; they were queued only to get their place by the new order
        for job in self.cluster.running.values():
            self._take(job)
        for ledger in list(self.cluster.fleet):
            while self.cluster.fleet[ledger.device_id].seats > ledger.seats_max + SEAT_SLACK:
                newest = list(self.cluster.fleet[ledger.device_id].jobs.values())[-1]
                self._push_out(newest, f"policy {policy.name} has no seat for it")
        self._due = True

    def lose(self, job: Job, detail: str) -> None:
        """Let a running job wait again because its device is gone.

        What the job has learned since it was last saved is gone too (the backend has set its
        figures back).
        """
        self._push_out(job, detail, event=LOST)

    def _push_out(self, job: Job, detail: str, event: Event = PAUSE) -> None:
        """Take a resident off its devices and let it wait again.

        This is neither the job's fault nor a decision of the policy.
        """
        self.backend.stop(job)
        devices = self._leave(job)
        job.preemptions += event == PAUSE
        self._tell(event, job, devices, detail)
        self._paused.append(job.job_id)
        self._due = True
        self._enqueue(job)

    # -- deciding

    @property
    def due(self) -> bool:
        """Whether anything happened that the policy could answer to."""
        return self._due

    def decide(self) -> None:
        """Ask the policy and carry out its plan; PolicyError where the plan is not valid."""
        if not self._due:
            return
        cluster = self.cluster
        for _ in range(SETTLE_ROUNDS):
            self._due = False
            view = LiveView(
                self.cluster, self.backend.now_s, (self._arrived, self._finished, self._paused, self._freed)
            )
            self._arrived, self._finished, self._paused, self._freed = [], [], [], []
            self.decisions += 1
            plan = ask(self.policy, view, self._on_plan)
            actions = plan._actions
            if actions:
                if plan.fleet is not cluster.fleet:
                    cluster.fleet.adopt(plan.fleet)
                for action in actions:
                    self._carry_out(action)
            if plan._reviews:
                for t_s in plan._reviews:
                    self.backend.review_at(t_s)
            if plan._watches:
                for job, attained_s in plan._watches:
                    if job.state == RUNNING:
                        self.backend.review_when(job, attained_s)
            if not self._set_barrier(view, plan):
                return

    def _carry_out(self, action: Action) -> None:
        job = action.job
        if isinstance(action, Start):
            _, devices, share = action
            self._take(job)
            again = job.first_start_s >= 0
            if again:
                job.paused_s += self.backend.now_s - job.last_stop_s
            else:
                job.first_start_s = self.backend.now_s
            self.cluster.run(job, devices, share)
            self.backend.start(job, devices, share)
            self._tell(RESUME if again else START, job, devices, "")
        elif isinstance(action, Pause):
            self.backend.stop(job)
            devices = self.cluster.leave(job)
            job.preemptions += 1
            self._tell(PAUSE, job, devices, "")
            self._enqueue(job)
        elif isinstance(action, Share):
            job.share = action.share
            self.backend.set_share(job, action.share)
        else:
            assert isinstance(action, Reject)
            self._take(job)
            detail = f"{action.reason} (needs {action.need_bytes:.0f} bytes, {action.have_bytes:.0f} available)"
            self.drop(job, REJECT, detail)
            self._due = False

    def _set_barrier(self, view: LiveView, plan: DeltaPlan) -> bool:
        """Note how far the policy looked, and return whether it should be asked again.

        It should where its window was cut and its plan started a job.
        """
        last: Job | None = None
        cut = False
        for window in view._windows:
            if window.exhausted:
                self._barrier = None
                return False
            furthest = window.last
            if furthest is not None and (last is None or self._behind(furthest, last.key)):
                last = furthest
            if window.read == window._n:
                cut = True
        self._barrier = None if last is None else last.key
        if cut and self.cluster.queue.count > 0:
            self._due = any(isinstance(action, Start) for action in plan._actions)
        else:
            self._due = False
        return self._due

    def _behind(self, job: Job, key: tuple[object, ...]) -> bool:
        try:
            return job.key > key
        except BaseException as error:
            raise self._wrong_order(job, error) from error

    # -- small moves

    def _enqueue(self, job: Job) -> None:
        job.state, job.devices, job.share = WAITING, (), 1.0
        job.enqueued_s = job.last_stop_s = self.backend.now_s
        job.seen = None
        self._put(job)

    def _put(self, job: Job) -> None:
        try:
            self.cluster.queue.add(job)
        except BaseException as error:
            raise self._wrong_order(job, error) from error

    def _take(self, job: Job) -> None:
        try:
            self.cluster.queue.remove(job)
        except BaseException as error:
            raise self._wrong_order(job, error) from error

    def _wrong_order(self, job: Job, error: BaseException) -> PolicyError:
        let_through(error)
        return wrong_order(self.policy, self.backend.now_s, job, error)

    def _leave(self, job: Job) -> tuple[int, ...]:
        devices, share = job.devices, job.share
        for device in devices:
            self.cluster.fleet.remove(job, device, share)
        self._freed.extend(devices)
        return self.cluster.leave(job)

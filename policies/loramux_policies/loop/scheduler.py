"""The one decide-apply loop, for simulated and for real devices alike.

Events go in (`arrive`, `finish`, `evict`), `decide` asks the policy, checks its plan and has the backend carry it
out. Nothing
here knows which backend it drives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from sortedcontainers import SortedKeyList

from loramux_policies.errors import LeftTheRecord, PolicyError, let_through
from loramux_policies.loop.backend import Backend
from loramux_policies.loop.fleet import Fleet
from loramux_policies.loop.job import DONE, RUNNING, WAITING, Job, view_of
from loramux_policies.loop.ledger import SEAT_SLACK, Ledger
from loramux_policies.loop.live_view import LiveView
from loramux_policies.loop.plan import Action, DeltaPlan, Pause, Reject, Share, Start
from loramux_policies.loop.waiting import WaitingQueue
from loramux_policies.policy import Policy
from loramux_policies.views import JobView

OOM_RETRIES: Final = 3
OOM_RAISE: Final = 0.02
"""An out-of-memory raises the device's bound by this share of the activations, wherever several jobs meet."""
OOM_RATE: Final = 0.01
"""Each stay that ends well lowers it again by OOM_RAISE * OOM_RATE, never below the profile's own bound, so that it
settles
where one stay in a hundred runs out (adaptive conformal inference, Gibbs and Candes 2021)."""
SETTLE_ROUNDS: Final = 64
"""A plan that started jobs out of a cut window is asked again, at most so often, before the clock moves on."""

Listener = Callable[[str, Job, tuple[int, ...], str], None]
"""Called with (event, job, devices, detail) for arrive, start, resume, share, pause, lost, finish, reject, oom, fail,
cancel, hold."""


def _nobody(event: str, job: Job, devices: tuple[int, ...], detail: str) -> None:
    """Listens to nothing."""


class Scheduler:
    """Jobs, queue and fleet of one run, and the policy that decides over them."""

    def __init__(
        self,
        policy: Policy,
        ledgers: Sequence[Ledger],
        backend: Backend,
        *,
        max_resident: float = float("inf"),
        listener: Listener | None = None,
        on_plan: Callable[[LiveView, DeltaPlan], None] | None = None,
    ) -> None:
        self.policy = policy
        for ledger in ledgers:
            ledger.seats_max = min(ledger.seats_max, policy.seats)
        self.fleet = Fleet(ledgers)
        self.backend = backend
        self.max_resident = min(max_resident, policy.seats)
        self._seats_wanted = max_resident
        """Of the user; the policy may want fewer."""
        self.queue = WaitingQueue(policy.order)
        self.active: dict[str, Job] = {}
        """Waiting and running jobs by id."""
        self.running: dict[str, Job] = {}
        self.decisions = 0
        self._tell = listener or _nobody
        self._on_plan = on_plan
        """Sees the view, still open, and the plan of every decision (contract tests, recording)."""
        self._sorted: SortedKeyList[Job, tuple[object, ...]] | None = None
        self.apart: list[Job] = []
        """Waiting jobs that are not in the queue (`evict`)."""
        self._arrived: list[str] = []
        self._finished: list[str] = []
        self._paused: list[str] = []
        self._freed: list[int] = []
        self._due = False
        self._barrier: tuple[object, ...] | None = None
        """Key of the last waiting job the policy looked at: who arrives behind it changes nothing."""

    # -- events

    def arrive(self, job: Job) -> bool:
        """A job was submitted. Returns whether `decide` must be called for it."""
        self.active[job.job_id] = job
        try:
            self._put(job)
        finally:  # it has arrived even where the policy's order fails on it: another policy may take over
            self._tell("arrive", job, (), "")
            self._arrived.append(job.job_id)
        if self._barrier is None or job.key < self._barrier:
            self._due = True
        return self._due

    def finish(self, job: Job) -> None:
        """A running job has done all its steps (the backend has brought it up to date)."""
        devices, share = job.devices, job.share
        for device in devices:
            ledger = self.fleet[device]
            if ledger.raised > 0.0:  # before it leaves: the totals made then are of the new bound
                ledger.raised = max(0.0, ledger.raised - OOM_RAISE * OOM_RATE)
            self.fleet.remove(job, device, share)
        self._forget(job)
        job.state = DONE
        del self.active[job.job_id]
        self._finished.append(job.job_id)
        self._freed.extend(devices)
        self._due = True
        self._tell("finish", job, devices, "")
        if self.apart:
            self._join_again(job.job_id)

    def evict(self, job: Job, detail: str) -> None:
        """A step with this job ran out of memory: it waits again, and the device's bound rises.

        After a few times alone on its device it fails. After a few times beside others it is not to be blamed (it was
        the newest, no more): it waits until all of them have ended.
        """
        self.backend.stop(job)
        beside: set[str] = set()
        for device in job.devices:
            self.fleet[device].raised += OOM_RAISE
            beside |= self.fleet[device].jobs.keys()
        beside.discard(job.job_id)
        devices = self._leave(job)
        job.oom_events += 1
        job.oom_alone += not beside
        self._due = True
        self._tell("oom", job, devices, detail)
        if job.oom_alone > OOM_RETRIES:
            self.drop(job, "fail", f"out of memory {job.oom_events} times: {detail}")
            return
        self._paused.append(job.job_id)
        if beside and (job.oom_events - job.oom_alone) % (OOM_RETRIES + 1) == 0:
            job.apart = beside
            self.apart.append(job)
            job.state, job.devices, job.share, job.last_stop_s = WAITING, (), 1.0, self.backend.now_s
            return
        self._enqueue(job)

    def _join_again(self, ended: str) -> None:
        """A job has ended: whoever was to wait for it, and for nobody else, is in the queue again."""
        for job in list(self.apart):
            job.apart.discard(ended)
            if not job.apart:
                self.apart.remove(job)
                self._enqueue(job)

    def fail(self, job: Job, event: str, detail: str) -> None:
        """A running job, which the backend has taken off its device, ends without having done its steps."""
        devices = self._leave(job)
        self.drop(job, event, detail, devices)

    def drop(self, job: Job, event: str, detail: str, devices: tuple[int, ...] = ()) -> None:
        """End a job that is neither waiting in the queue nor running (`devices`: where it ran until now)."""
        job.state = DONE
        self.active.pop(job.job_id, None)
        self._due = True
        self._tell(event, job, devices, detail)
        if self.apart:
            self._join_again(job.job_id)

    def withdraw(self, job: Job, event: str, detail: str = "") -> None:
        """A user takes a waiting or running job out: for good (`cancel`), or until it arrives again (`hold`)."""
        devices: tuple[int, ...] = ()
        if job.state == RUNNING:
            self.backend.stop(job)
            devices = self._leave(job)
            job.last_stop_s = self.backend.now_s
        elif job in self.apart:
            self.apart.remove(job)
        elif job.state == WAITING:
            self.queue.remove(job)
        job.share = 1.0
        self.drop(job, event, detail, devices)

    def reprice(self, job: Job, like: Job) -> None:
        """A job in the queue costs from now on what `like` does (its micro-batch is another); what it ran out of memory
        with is forgotten.
        """
        self.queue.remove(job)
        job.oom_alone = 0
        job.costs, job.need_min, job.need_bytes = like.costs, like.need_min, like.need_bytes
        job.seen = None
        self._due = True
        self._put(job)

    def review(self) -> None:
        """A review the policy asked for is due."""
        self._due = True

    def set_capacity(self, device_id: int, capacity_bytes: float) -> None:
        """The device has more or less memory than it had. Its newest residents wait again until the others fit."""
        self.fleet.set_capacity(device_id, capacity_bytes)
        self._freed.append(device_id)
        self._due = True
        while len(residents := list(self.fleet[device_id].jobs.values())) > 0:
            if self.fleet[device_id].used <= capacity_bytes:
                break
            self._push_out(residents[-1], "the device has less memory than it had")

    def use_policy(self, policy: Policy) -> None:
        """Go by another policy from now on. What a plan of the old one left half done is put right from the jobs'
        states.
        """
        self.policy = policy
        self._barrier = None
        self._sorted = None
        self.max_resident = min(self._seats_wanted, policy.seats)
        self.fleet = Fleet([ledger.emptied(self.max_resident) for ledger in self.fleet])
        for job in self.running.values():
            job.seen = None
            for device in job.devices:
                self.fleet.add(job, device, job.share)
        self.queue = WaitingQueue(policy.order)
        waiting = [job for job in self.active.values() if job.state == WAITING and job not in self.apart]
        for job in [*waiting, *self.running.values()]:
            job.seen = None
            self._put(job)
        for job in self.running.values():  # their place among the residents is by the new order; they do not wait
            self.queue.remove(job)
        for ledger in list(self.fleet):
            while self.fleet[ledger.device_id].seats > ledger.seats_max + SEAT_SLACK:
                newest = list(self.fleet[ledger.device_id].jobs.values())[-1]
                self._push_out(newest, f"policy {policy.name} has no seat for it")
        self._due = True

    def lose(self, job: Job, detail: str) -> None:
        """The device of a running job is gone, and with it what the job has learned since it was last saved: it waits
        again (the backend has set its figures back).
        """
        self._push_out(job, detail, event="lost")

    def _push_out(self, job: Job, detail: str, event: str = "pause") -> None:
        """A resident waits again, through no fault of its own and by no decision of the policy."""
        self.backend.stop(job)
        devices = self._leave(job)
        job.preemptions += event == "pause"
        self._tell(event, job, devices, detail)
        self._paused.append(job.job_id)
        self._due = True
        self._enqueue(job)

    @property
    def n_waiting(self) -> int:
        """Jobs that wait, in the queue or apart from it."""
        return self.queue.count + len(self.apart)

    # -- deciding

    @property
    def due(self) -> bool:
        """Whether anything happened that the policy could answer to."""
        return self._due

    def decide(self) -> None:
        """Ask the policy and carry out its plan. PolicyError, with the policy's name, where the plan is not valid."""
        if not self._due:
            return
        for _ in range(SETTLE_ROUNDS):
            self._due = False
            view = LiveView(self, self.backend.now_s, (self._arrived, self._finished, self._paused, self._freed))
            self._arrived, self._finished, self._paused, self._freed = [], [], [], []
            plan = self._ask(view)
            actions = plan.actions
            if actions:
                if plan.fleet is not self.fleet:
                    self.fleet.adopt(plan.fleet)
                for action in actions:
                    self._carry_out(action)
            if plan.reviews:
                for t_s in plan.reviews:
                    self.backend.review_at(t_s)
            if plan.watches:
                for job, attained_s in plan.watches:
                    if job.state == RUNNING:
                        self.backend.review_when(job, attained_s)
            if not self._set_barrier(view, plan):
                return

    def _ask(self, view: LiveView) -> DeltaPlan:
        self.decisions += 1
        policy = self.policy
        try:
            plan = policy.place(view)
            if self._on_plan is not None and isinstance(plan, DeltaPlan):
                self._on_plan(view, plan)
        except PolicyError as error:
            raise PolicyError(f"policy {policy.name} at {view._now_s:.3f} s: {error}") from error
        except LeftTheRecord:  # not the policy's doing
            raise
        except BaseException as error:
            let_through(error)
            what = f"raised {type(error).__name__}: {error}"
            raise PolicyError(f"policy {policy.name} at {view._now_s:.3f} s {what}") from error
        finally:
            view.close()
        if not isinstance(plan, DeltaPlan) or plan not in view.plans:
            raise PolicyError(
                f"policy {policy.name}: place() must return a plan made by this view's plan(), not {plan!r}"
            )
        return plan

    def _carry_out(self, action: Action) -> None:
        job = action.job
        if isinstance(action, Start):
            _, devices, share = action
            self.queue.remove(job)
            again = job.first_start_s >= 0
            if again:
                job.paused_s += self.backend.now_s - job.last_stop_s
            else:
                job.first_start_s = self.backend.now_s
            job.state = RUNNING
            job.devices = devices
            job.share = share
            self.running[job.job_id] = job
            if self._sorted is not None:
                self._sorted.add(job)
            self.backend.start(job, devices, share)
            self._tell("resume" if again else "start", job, devices, "")
        elif isinstance(action, Pause):
            self.backend.stop(job)
            devices = self._forget(job)
            job.preemptions += 1
            self._tell("pause", job, devices, "")
            self._enqueue(job)
        elif isinstance(action, Share):
            job.share = action.share
            self.backend.set_share(job, action.share)
        else:
            assert isinstance(action, Reject)
            self.queue.remove(job)
            detail = f"{action.reason} (needs {action.need_bytes:.0f} bytes, {action.have_bytes:.0f} available)"
            self.drop(job, "reject", detail)
            self._due = False

    def _set_barrier(self, view: LiveView, plan: DeltaPlan) -> bool:
        """Note how far the policy looked; True where its window was cut and it should be asked again."""
        last: Job | None = None
        cut = False
        for window in view.windows:
            if window.exhausted:
                self._barrier = None
                return False
            furthest = window.last
            if furthest is not None and (last is None or furthest.key > last.key):
                last = furthest
            if window.read == window._n:
                cut = True
        self._barrier = None if last is None else last.key
        if cut and self.queue.count > 0:
            self._due = any(isinstance(action, Start) for action in plan.actions)
        else:
            self._due = False
        return self._due

    # -- what views are made of

    def current_view(self, job: Job) -> JobView:
        """The view of a job as of now."""
        if job.state == WAITING:
            return job.view
        self.backend.sync(job)
        return view_of(job)

    def remaining_s(self, job: Job) -> float:
        """Predicted seconds left, alone on its device, or on the first device type while it waits."""
        if job.state == WAITING:
            return job.view.remaining_s
        self.backend.sync(job)
        cost = job.cost_on(self.fleet[job.devices[0]].type_index)
        return max(0.0, job.predicted_steps - job.done_steps) * cost.solo_step_s * cost.accumulation

    def switch_s(self, job: Job) -> float:
        """Seconds that one pause and resume of this job cost its device."""
        return 2.0 * (job.costs[0] or next(cost for cost in job.costs if cost is not None)).pause_s

    def by_order(self) -> SortedKeyList[Job, tuple[object, ...]]:
        """Running jobs by the key they were enqueued with; kept from the first time a policy asks."""
        if self._sorted is None:
            self._sorted = SortedKeyList(self.running.values(), key=lambda job: job.key)
        return self._sorted

    # -- small moves

    def _enqueue(self, job: Job) -> None:
        job.state, job.devices, job.share = WAITING, (), 1.0
        job.enqueued_s = job.last_stop_s = self.backend.now_s
        job.seen = None
        self._put(job)

    def _put(self, job: Job) -> None:
        try:
            self.queue.add(job)
        except BaseException as error:
            let_through(error)
            what = f"the order of {job.job_id} raised {type(error).__name__}: {error}"
            raise PolicyError(f"policy {self.policy.name} at {self.backend.now_s:.3f} s: {what}") from error

    def _leave(self, job: Job) -> tuple[int, ...]:
        devices, share = job.devices, job.share
        for device in devices:
            self.fleet.remove(job, device, share)
        self._freed.extend(devices)
        return self._forget(job)

    def _forget(self, job: Job) -> tuple[int, ...]:
        devices = job.devices
        del self.running[job.job_id]
        if self._sorted is not None:
            self._sorted.remove(job)
        job.devices = ()
        return devices

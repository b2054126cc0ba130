"""When a scheduler that starts nothing is a stall, and when it only waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from loramux_policies import Policy
from loramux_policies.errors import PolicyError
from loramux_policies.views import ClusterView, Plan
from loramux_runtime.live import policy_guard
from loramux_runtime.live.drive.live_times import PredictedLiveTimes
from loramux_runtime.live.inbox import LiveInbox
from loramux_runtime.train.faults import FaultPlan
from loramux_traces.locking import owned

from .asking import states
from .serving import jobs, play, service, submit


class Nothing(Policy):
    """Starts nothing."""

    name = "nothing"

    def place(self, view: ClusterView) -> Plan:
        return view.plan()


def test_a_stall_ends_the_scheduler_where_that_is_asked_for(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 1))
    options = {"watch": lambda now_s: None}
    with pytest.raises(PolicyError, match="nothing starts nothing"):
        play(store, Nothing(), on_policy_error="exit", options=options)
    assert states(store) == {"job00": "WAITING"}


LATE_S = policy_guard.STALL_S / 3


class Later(Policy):
    """Begins nothing in the first seconds after something comes."""

    name = "later"

    def place(self, view: ClusterView) -> Plan:
        plan = view.plan()
        for job in view.waiting(view.n_waiting):
            if view.now_s < job.submit_s + LATE_S:
                plan.review_at(job.submit_s + LATE_S)
            else:
                plan.start_first(job.job_id)
        return plan


def test_a_policy_may_begin_late_after_an_idle_time(tmp_path: Path) -> None:
    idle_s = 3 * policy_guard.STALL_S
    store = submit(tmp_path / "state", jobs(tmp_path, 2, steps=1), at_s=[0.0, idle_s])
    play(store, Later(), options={"times": PredictedLiveTimes()})
    assert store.job("job01")["start_s"] >= idle_s + LATE_S > store.job("job00")["finish_s"] + policy_guard.STALL_S
    assert set(states(store).values()) == {"COMPLETED"}
    assert not any(event["event"] == "policy-error" for event in store.events())


def test_a_device_emptied_by_a_full_disk_is_no_stall(tmp_path: Path) -> None:
    def no_space(_: str, facts: dict[str, object]) -> None:
        if facts["job_id"] == "job00" and facts["stage"] == "state":
            raise OSError(28, "No space left on device")

    store = submit(tmp_path / "state", jobs(tmp_path, 3))
    play(store, "srtf", max_resident=1.0, checkpoint_s=0.0, faults=FaultPlan(checkpoint=no_space))
    assert states(store) == {"job00": "HELD", "job01": "COMPLETED", "job02": "COMPLETED"}
    assert not any(event["event"] == "policy-error" for event in store.events())


class MuchLater(Policy):
    """Starts nothing, and wants to be asked in eleven days."""

    name = "much-later"

    def place(self, view: ClusterView) -> Plan:
        plan = view.plan()
        plan.review_at(view.now_s + 1e6)
        return plan


def test_a_policy_that_wants_to_be_asked_much_later_is_a_stall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_guard, "STALL_S", 0.3)
    store = submit(tmp_path / "state", jobs(tmp_path, 1, steps=2))
    with owned(store.folder):
        scheduler = service(store, MuchLater())
        looks, news = [0], LiveInbox.news

        def counted(inbox: LiveInbox) -> bool:
            looks[0] += 1
            if looks[0] > 2000:  # nobody has noticed
                scheduler.driver.request_stop()
            return news(inbox)

        monkeypatch.setattr(LiveInbox, "news", counted)
        scheduler.play()
    assert states(store) == {"job00": "COMPLETED"}
    assert any("starts nothing" in event.get("detail", "") for event in store.events())

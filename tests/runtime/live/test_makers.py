"""States are made, or read from checkpoints, beside the training of the others."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from loramux_policies import create
from loramux_policies.loop.job import Job
from loramux_policies.stepping.replay import replay
from loramux_policies.stepping.stream import decisions
from loramux_profiles.devices import load_device
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.drive import makers
from loramux_runtime.live.drive.makers import Made, Makers
from loramux_runtime.live.state.marker import read_marker
from loramux_runtime.live.state.store import Store
from loramux_runtime.live.watch.status import read_status
from loramux_runtime.train.faults import FaultPlan
from loramux_traces.job import JobSpec
from loramux_traces.locking import owned

from .asking import at_steps, states, stop_after
from .serving import curves, first, jobs, play, service, submit


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even the smallest state is made beside training."""
    monkeypatch.setattr(makers, "AT_ONCE_BYTES", -1)


class Gate:
    """Holds up the making of one job's state until the others have trained for a few steps."""

    def __init__(self, job_id: str, *, steps: int = 3) -> None:
        self.job_id, self._steps = job_id, steps
        self.open = threading.Event()
        self.trained: list[tuple[str, ...]] = []
        """Jobs of each step."""

    def plan(self) -> FaultPlan:
        return FaultPlan(restore=self._restore, step=self._step)

    def _restore(self, _: str, facts: Mapping[str, object]) -> None:
        if facts["job_id"] == self.job_id:
            assert self.open.wait(60.0)

    def _step(self, _: str, facts: Mapping[str, object]) -> None:
        self.trained.append(cast("tuple[str, ...]", facts["job_ids"]))
        if len(self.trained) >= self._steps:
            self.open.set()

    @property
    def joined(self) -> int:
        """The step that the job was in first, counted from 0."""
        return next(i for i, names in enumerate(self.trained) if self.job_id in names)


def stopped(folder: Path) -> Store:
    """Two jobs that have been trained for a step, and saved."""
    store = submit(folder / "state", jobs(folder, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(makers, "AT_ONCE_BYTES", 1 << 60)
        stop_after(store, 2)
    assert store.job("job01")["step"] == 1
    return store


@pytest.mark.parametrize("policy", ["fifo", "aspen"])
def test_the_others_train_while_a_state_is_made(policy: str, tmp_path: Path, whole: dict[str, Any]) -> None:
    store, gate, specs = submit(tmp_path / "state", jobs(tmp_path, 4)), Gate("job01"), list[JobSpec]()
    with owned(store.folder):
        scheduler = service(store, policy, faults=gate.plan(), record=True)
        arrive = scheduler.loop.arrive
        scheduler.loop.arrive = lambda job: (specs.append(job.spec), arrive(job))[1]  # type: ignore[method-assign]
        assert scheduler.play().failed == 0
    assert gate.joined >= 3
    assert curves(store) == first(whole, 4)
    events = list(store.events())
    held = [row["event"] for row in events if row.get("job_id") == "job01"]
    assert held[:5] == ["read", "arrive", "loading", "start", "loaded"]
    again = replay(events, specs, create(policy), load_device("cpu"))
    assert again.left == ""
    assert decisions(again.events) == decisions(events)


def test_a_checkpoint_is_read_beside_training(tmp_path: Path, whole: dict[str, Any]) -> None:
    store = stopped(tmp_path)
    gate = Gate("job01")
    play(store, "fifo", faults=gate.plan())
    assert gate.joined >= 3
    assert curves(store) == first(whole, 2)


class Raises:
    """Raises in the making of one job's state."""

    def __init__(self, job_id: str, error: BaseException) -> None:
        self._job_id, self._error = job_id, error

    def plan(self) -> FaultPlan:
        return FaultPlan(restore=self._restore)

    def _restore(self, _: str, facts: Mapping[str, object]) -> None:
        if facts["job_id"] == self._job_id:
            raise self._error


class Panic(BaseException):
    """What a library in Rust raises where it gives up."""


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (MemoryError("no room"), "FAILED_OOM", "no room"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 byte"), "FAILED_OOM", "1 byte"),
        (ValueError("of ours"), "FAILED_CRASHED", "ValueError: of ours"),
        (Panic("index out of bounds"), "FAILED_CRASHED", "Panic: index out of bounds"),
    ],
)
def test_a_state_that_cannot_be_made_fails_its_job_alone(
    error: BaseException,
    state: str,
    said: str,
    at_once: bool,
    tmp_path: Path,
    whole: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if at_once:
        monkeypatch.setattr(makers, "AT_ONCE_BYTES", 1 << 60)
    store = submit(tmp_path / "state", jobs(tmp_path, 3))
    assert play(store, "fifo", faults=Raises("job01", error).plan()).failed == 1
    assert states(store) == {"job00": "COMPLETED", "job01": state, "job02": "COMPLETED"}
    reason = store.job("job01")["reason"]
    assert "its state cannot be made or read" in reason and said in reason
    assert {name: curve for name, curve in curves(store).items() if curve} == {
        name: whole[name] for name in ("job00", "job02")
    }


def test_a_state_that_cannot_be_read_pauses_its_job(tmp_path: Path, whole: dict[str, Any]) -> None:
    store = stopped(tmp_path)
    step = store.job("job01")["step"]
    play(store, "fifo", faults=Raises("job01", MemoryError("no room")).plan())
    assert states(store) == {"job00": "COMPLETED", "job01": "HELD"}
    assert store.job("job01")["step"] == step and "no room" in store.job("job01")["reason"]
    store.command("resume", "job01")
    play(store, "fifo")
    assert curves(store) == first(whole, 2)


@pytest.mark.parametrize("alone", [True, False])
def test_a_stop_does_not_wait_for_a_state(alone: bool, tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 1 if alone else 2, steps=200))
    gate = Gate("job00" if alone else "job01", steps=1 << 30)
    with owned(store.folder):
        scheduler = service(store, "fifo", faults=FaultPlan(restore=gate._restore))
        news = scheduler.driver._states.news
        looks = [0]

        def stopping() -> bool:
            looks[0] += 1
            if looks[0] > 5:
                scheduler.driver.request_stop()
            return news()

        step = scheduler.host.boundary

        def boundary() -> bool:
            stopping()
            return step()

        scheduler.driver._states.news = stopping  # type: ignore[method-assign]
        scheduler.host.boundary = boundary  # type: ignore[method-assign]
        scheduler.play()
        assert not gate.open.is_set()
        marked = read_marker(store.folder)
        assert store.job(gate.job_id)["state"] == "RUNNING" and "being made" in store.job(gate.job_id)["why"]
    gate.open.set()
    assert marked is not None and list(marked.making) == [gate.job_id]
    assert not store.records(gate.job_id)


@pytest.mark.parametrize("verb", ["cancel", "pause"])
def test_a_job_may_leave_while_its_state_is_made(verb: str, tmp_path: Path, whole: dict[str, Any]) -> None:
    store, gate = submit(tmp_path / "state", jobs(tmp_path, 2)), Gate("job01", steps=4)
    asking = at_steps(store.folder, {2: lambda other: other.command(verb, "job01")})

    def step(name: str, facts: dict[str, object]) -> None:
        gate._step(name, facts)
        asking.reach(name, **facts)

    play(store, "fifo", faults=FaultPlan(restore=gate._restore, step=step))
    assert states(store) == {"job00": "COMPLETED", "job01": "CANCELLED" if verb == "cancel" else "HELD"}
    assert not store.records("job01") and len(gate.trained) >= 4
    if verb == "pause":
        store.command("resume", "job01")
        play(store, "fifo")
        assert curves(store) == first(whole, 2)


def test_the_process_that_dies_over_a_state_makes_it_at_once_the_next_time(tmp_path: Path) -> None:
    """So the second death is that job's alone, and it is not taken in a third time."""
    store = submit(tmp_path / "state", jobs(tmp_path, 3))
    died = [0]

    class Killed(BaseException):
        pass

    def step(_: str, facts: dict[str, object]) -> None:
        # as if the thread that makes the state had brought the process down in this step
        marked = read_marker(store.folder)
        if marked is not None and "job01" in marked.making:
            died[0] += 1
            raise Killed

    gate = threading.Event()

    def restore(_: str, facts: dict[str, object]) -> None:
        if facts["job_id"] != "job01":
            return
        if threading.current_thread() is threading.main_thread():
            died[0] += 1
            raise KeyboardInterrupt  # goes through, as a crash of the process would
        gate.wait(60.0)

    faults = FaultPlan(step=step, restore=restore)
    with pytest.raises(Killed):
        play(store, "fifo", faults=faults)
    with pytest.raises(KeyboardInterrupt):
        play(store, "fifo", faults=faults)
    play(store, "fifo", faults=faults)
    gate.set()
    assert died == [2]
    assert store.job("job01")["state"] in ("HELD", "FAILED_CRASHED")
    assert "died 2 times while it took the job in" in store.job("job01")["reason"]
    assert {states(store)[name] for name in ("job00", "job02")} == {"COMPLETED"}


def test_a_job_that_has_been_taken_in_is_no_suspect_any_more(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 2))
    store.update("job01", admission_deaths=1)
    play(store, "fifo")
    assert [(row["state"], row["admission_deaths"]) for row in store.jobs()] == [("COMPLETED", 0)] * 2


def test_jobs_of_a_stopped_scheduler_wait(tmp_path: Path) -> None:
    store = stopped(tmp_path)
    found = read_status(store)
    assert found["states"] == {"WAITING": 2} and found["waiting"] == 2 and found["resident"] == 0
    assert [job["state"] for job in found["jobs"]] == ["WAITING"] * 2


def test_a_checkpoint_that_is_gone_is_told(tmp_path: Path, whole: dict[str, Any]) -> None:
    store, said = stopped(tmp_path), list[str]()
    shutil.rmtree(store.folder / "checkpoints" / "job01")
    play(store, "fifo", warn=said.append)
    assert said == ["job01 begins again at its first step: it has no checkpoint (it was at step 1)"]
    assert curves(store) == first(whole, 2)


def test_a_state_that_cannot_be_saved_is_told_once(tmp_path: Path) -> None:
    store, said = submit(tmp_path / "state", jobs(tmp_path, 2, steps=30)), list[str]()
    (store.folder / "checkpoints").mkdir()
    (tmp_path / "elsewhere").mkdir()

    def spoil(_: str, facts: dict[str, object]) -> None:
        if not (store.folder / "checkpoints" / "job01").is_symlink():
            shutil.rmtree(store.folder / "checkpoints" / "job01", ignore_errors=True)
            (store.folder / "checkpoints" / "job01").symlink_to(tmp_path / "elsewhere", target_is_directory=True)

    play(store, "fifo", warn=said.append, checkpoint_s=0.0, faults=FaultPlan(step=spoil))
    assert states(store) == {"job00": "COMPLETED", "job01": "HELD"}
    assert len([line for line in said if "job01 is paused" in line]) == 1


# -- the makers by themselves


class Sizes:
    """States of given sizes that are made when told so (contract: `makers.States`)."""

    def __init__(self, sizes: Mapping[str, float]) -> None:
        self.sizes, self.current = sizes, True
        self.gates = {name: threading.Event() for name in sizes}
        self.made = {name: threading.Event() for name in sizes}
        self.began: list[str] = []

    def size_bytes(self, job: Job) -> float:
        return self.sizes[job.job_id]

    def make(self, job_id: str) -> Made:
        self.began.append(job_id)
        self.made[job_id].set()
        assert self.gates[job_id].wait(60.0)
        return Made(training=cast(TrainingJob, job_id), found=None, warnings=(), entry=None)

    def is_current(self, job: Job, made: Made) -> bool:
        was, self.current = self.current, True
        return was

    def take(self, job: Job, made: Made) -> None:
        """Nothing is booked."""


class Setting:
    """Makers on a clock of the test's own."""

    def __init__(self, **sizes: float) -> None:
        self.now_s = 0.0
        self.sizes, self.training, self.marked = Sizes(sizes), dict[str, Any](), list[dict[str, float]]()
        self.jobs = {name: cast(Job, SimpleNamespace(job_id=name, done_steps=2.0)) for name in sizes}
        joining: Callable[[Job], AbstractContextManager[None]] = lambda job: nullcontext()
        self.makers = Makers(
            lambda: self.sizes,
            self.training,
            active=self.jobs.get,
            joining=joining,
            making=lambda jobs: self.marked.append(dict(jobs)),
            suspect=lambda job_id: False,
            clock_s=lambda: self.now_s,
        )

    def finish(self, name: str) -> None:
        self.sizes.gates[name].set()
        task = self.makers._tasks[name]
        assert task.done.wait(60.0)

    def close(self) -> None:
        for gate in self.sizes.gates.values():
            gate.set()


@pytest.fixture
def three() -> Iterator[Setting]:
    setting = Setting(a=1e6, b=1e6, c=1e6)
    yield setting
    setting.close()


def test_two_states_are_made_at_once_and_marked(three: Setting) -> None:
    assert [three.makers.fetch(three.jobs[name]) for name in "abc"] == [False] * 3
    assert three.marked[-1] == {"a": 2.0, "b": 2.0} and not three.makers.news()
    three.finish("a")
    assert three.makers.news()
    assert [arrival.job_id for arrival in three.makers.arrived()] == ["a"]
    assert three.makers.fetch(three.jobs["a"]) and three.training == {"a": "a"}
    assert three.marked[-1] == {"b": 2.0, "c": 2.0} and not three.makers.news()
    three.finish("c")
    assert three.makers.fetch(three.jobs["c"])  # asked for before anybody looked
    three.finish("b")
    assert [arrival.job_id for arrival in three.makers.arrived()] == ["b"]
    assert three.marked[-1] == {} and three.makers.arrived() == [] and not three.makers.news()
    assert three.makers.fetch(three.jobs["b"])


def test_a_state_that_takes_for_ever_is_given_up(three: Setting) -> None:
    assert not three.makers.fetch(three.jobs["a"]) and not three.makers.fetch(three.jobs["b"])
    assert not three.makers.fetch(three.jobs["c"])
    three.now_s = makers.HANG_S - 1.0
    assert three.makers.arrived() == []
    three.now_s = makers.HANG_S + 1.0
    assert three.makers.news()
    late = three.makers.arrived()
    assert [arrival.job_id for arrival in late] == ["a", "b"] and "not there after 61 s" in late[0].fault
    # it keeps nobody waiting, and may be asked for again
    assert three.marked[-1] == {"c": 2.0} and not three.makers.fetch(three.jobs["a"])


def test_a_state_of_a_job_that_has_gone_is_dropped(three: Setting) -> None:
    three.makers.fetch(three.jobs["a"])
    job = three.jobs.pop("a")
    three.finish("a")
    assert three.makers.arrived() == [] and not three.training and not three.makers.news()
    three.jobs["a"] = job
    three.sizes.gates["a"].clear()
    assert not three.makers.fetch(job)


def test_a_state_made_from_other_rows_is_made_anew(three: Setting) -> None:
    three.makers.fetch(three.jobs["a"])
    three.finish("a")
    assert [arrival.job_id for arrival in three.makers.arrived()] == ["a"]
    three.sizes.current = False  # the job has been read again meanwhile
    three.sizes.gates["a"].clear()
    assert not three.makers.fetch(three.jobs["a"]) and not three.training
    three.finish("a")
    assert [arrival.job_id for arrival in three.makers.arrived()] == ["a"]
    assert three.makers.fetch(three.jobs["a"]) and three.sizes.began == ["a", "a"]


def test_a_state_for_which_memory_ran_out_beside_another_is_made_again_by_itself(three: Setting) -> None:
    """The other one may have had the memory."""

    def make(job_id: str, first: list[str] = []) -> Made:  # noqa: B006  # kept from call to call
        first.append(job_id)
        if first.count("b") == 1 and job_id == "b":
            raise MemoryError
        return Sizes.make(three.sizes, job_id)

    three.sizes.make = make  # type: ignore[method-assign]
    for name in "abc":
        three.makers.fetch(three.jobs[name])
    assert three.makers._tasks["b"].done.wait(60.0)
    assert three.makers.arrived() == [] and not three.makers.news()
    assert three.marked[-1] == {"a": 2.0, "c": 2.0}
    three.finish("a")
    assert [arrival.job_id for arrival in three.makers.arrived()] == ["a"]
    assert three.marked[-1] == {"c": 2.0}  # not beside the third
    three.finish("c")
    assert [arrival.job_id for arrival in three.makers.arrived()] == ["c"]
    assert three.marked[-1] == {"b": 2.0}
    three.finish("b")
    assert [(arrival.job_id, arrival.fault) for arrival in three.makers.arrived()] == [("b", "")]


def test_tensors_of_a_failed_making_are_not_pinned() -> None:
    class Fails(Sizes):
        def make(self, job_id: str) -> Made:
            large = torch.zeros(8)
            raise MemoryError(str(large.shape))

    setting = Setting(a=1e6)
    setting.sizes = Fails({"a": 1e6})
    setting.makers.fetch(setting.jobs["a"])
    task = setting.makers._tasks["a"]
    assert task.done.wait(60.0) and task.fault is not None and task.fault.__traceback__ is None
    arrival = setting.makers.arrived()[0]
    assert arrival.out_of_memory and "torch.Size([8])" in arrival.fault

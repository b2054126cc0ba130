"""Several devices, in this process.

Where jobs go, what they learn there, and what the death of a worker costs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from loramux_runtime.live.drive.live_times import MonotonicTimes, PredictedLiveTimes
from loramux_runtime.live.drive.pool import InProcessPool, WorkerDied
from loramux_runtime.live.drive.worker_restarts import RESTARTS, WorkerRestarts
from loramux_runtime.live.state.run_folder import write_results
from loramux_runtime.train.faults import FaultPlan
from loramux_traces.errors import HardwareMissingError

from . import serving
from .pooling import Bits, bits, check_decisions, events, in_process, play, same, service
from .serving import curves, jobs, submit


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> Bits:
    """Curves and adapters of the jobs below on one device."""
    folder = tmp_path_factory.mktemp("one")
    store = submit(folder / "state", jobs(folder, 8))
    assert serving.play(store).failed == 0
    return bits(store)


@pytest.mark.parametrize(
    "policy", [*["aspen"], *(pytest.param(x, marks=pytest.mark.slow) for x in ["fifo", "srtf", "best-fit"])]
)
def test_bits_are_those_of_one_device(policy: str, tmp_path: Path, one_device: Bits) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 8))
    pool = in_process(3)
    assert play(store, pool, policy, max_resident=2).failed == 0
    same(store, one_device)
    # nothing is left there
    assert [worker is not None and not worker._jobs for worker in pool.workers] == [True] * 3
    assert {row["devices"] for row in store.jobs()} == {"0", "1", "2"}


def test_a_run_folder_has_every_device(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 6))
    play(store, in_process(3), max_resident=1, times=PredictedLiveTimes())
    summary = write_results(store, {"policy": "aspen"})
    assert 0.0 < summary["gpu_busy_fraction"] <= 1.0
    assert store.fact("devices") == 3 and {sample[1] for sample in store.samples()} == {0, 1, 2}


# -- decisions


@pytest.mark.parametrize(
    "policy",
    [
        "aspen",
        *(
            pytest.param(x, marks=pytest.mark.slow)
            for x in ["fifo", "srtf", "sjf", "priority", "aspen-priority", "best-fit"]
        ),
    ],
)
def test_decisions_are_the_simulators(policy: str, tmp_path: Path) -> None:
    check_decisions(in_process(4), policy, tmp_path, 40)


class Slow(InProcessPool):
    """A step of device 1 is not heard of before it has been asked for so many times."""

    held = 20

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._left = 0

    def launch(self, worker: int, entries: Sequence[tuple[str, int]]) -> None:
        super().launch(worker, entries)
        if worker == 1:
            self._left = self.held

    def wait(self, workers: Any, timeout_s: float | None) -> Any:
        self._left -= 1
        return super().wait([worker for worker in workers if worker != 1 or self._left < 0], timeout_s)


def test_a_device_does_not_wait_for_another(tmp_path: Path, one_device: Bits) -> None:
    pool = Slow(2, in_process(1)._make)
    store = submit(tmp_path / "state", jobs(tmp_path, 8))
    play(store, pool, "fifo", max_resident=1)
    same(store, one_device)
    where = Counter(row["devices"] for row in store.jobs())
    assert where["0"] > where["1"] >= 1


def test_a_job_is_cancelled_and_another_paused_in_mid_step(tmp_path: Path, one_device: Bits) -> None:
    pool = Slow(2, in_process(1)._make)
    store = submit(tmp_path / "state", jobs(tmp_path, 8))
    asked: list[int] = []

    launch = pool.launch

    def ask(worker: int, entries: Sequence[tuple[str, int]]) -> None:
        launch(worker, entries)
        if worker == 1 and not asked:  # the jobs of this very step
            other = serving.Store(store.folder)
            asked.append(other.command("pause", entries[0][0]))
            asked.append(other.command("resume", entries[0][0]))
            asked.append(other.command("export", entries[0][0], str(tmp_path / "adapter")))
            other.close()

    pool.launch = ask  # type: ignore[method-assign]
    play(store, pool, "fifo", max_resident=2)
    assert [store.answered(number)["refused"] for number in asked] == ["", "", ""]  # type: ignore[index]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert len(events(store, "hold")) == 1
    same(store, one_device)


def test_a_job_that_is_on_no_worker_is_paused(tmp_path: Path, one_device: Bits) -> None:
    pool = in_process(1)
    store = submit(tmp_path / "state", jobs(tmp_path, 8))
    launch, steps = pool.launch, [0]

    def ask(worker: int, entries: Sequence[tuple[str, int]]) -> None:
        launch(worker, entries)
        steps[0] += 1
        verb = {2: "pause", 5: "resume"}.get(steps[0])
        if verb is not None:
            other = serving.Store(store.folder)
            other.command(verb, "job07")
            other.close()

    pool.launch = ask  # type: ignore[method-assign]
    play(store, pool, "fifo", max_resident=1)
    assert [store.answered(number)["answer"] for number in (1, 2)] == ["job07 is paused", "job07 goes on"]  # type: ignore[index]
    same(store, one_device)


# -- workers that die


def dying(at: Sequence[int]) -> FaultPlan:
    """The worker dies in these fused steps of the pool, counted from 1."""
    count = [0]

    def fault(_: str, facts: dict[str, object]) -> None:
        count[0] += 1
        if count[0] in at:
            raise WorkerDied("as planned")

    return FaultPlan(step=fault)


@pytest.mark.parametrize(
    "at", [*[[5, 6, 20]], *(pytest.param(x, marks=pytest.mark.slow) for x in [[1], [7], [3, 9, 15, 30]])]
)
@pytest.mark.parametrize("checkpoint_s", [0.0, 1e9])
def test_jobs_go_on_from_their_last_checkpoint(
    at: list[int], checkpoint_s: float, tmp_path: Path, one_device: Bits
) -> None:
    pool = in_process(3, dying(at))
    store = submit(tmp_path / "state", jobs(tmp_path, 8))
    said: list[str] = []
    scheduler = service(store, pool, "fifo", max_resident=2, checkpoint_s=checkpoint_s, warn=said.append)
    assert scheduler.play().failed == 0
    same(store, one_device)
    assert (
        pool.restarts == len(at) == scheduler.host.worker_deaths == len(events(store, "worker-died", "worker-up")) / 2
    )
    assert [line for line in said if "died" in line] and scheduler.book.counts["lost"] >= len(at)
    assert all(row["preemptions"] == 0 for row in store.jobs())


@pytest.mark.parametrize(
    "at", [*[[9, 30, 31]], *(pytest.param(x, marks=pytest.mark.slow) for x in [[], [20], [12, 24, 36, 48]])]
)
def test_jobs_that_are_paused_in_mid_step(at: list[int], tmp_path: Path) -> None:
    """Their state follows them to another device, or is lost on the way.

    Arrivals pause somebody all the time.
    """
    found = jobs(tmp_path, 16)
    for i, job in enumerate(found):
        job["priority"] = i
    alone = submit(tmp_path / "alone", found)
    serving.play(alone)
    pool = in_process(3, dying(at))
    store = submit(tmp_path / "state", found, at_s=[0.0037 * i for i in range(16)])
    scheduler = service(
        store,
        pool,
        "priority",
        max_resident=1,
        checkpoint_s=0.01,
        times=PredictedLiveTimes(),
        flush_s=1e9,
        record=True,  # a stream is of one device: a pool writes none
    )
    early: list[str] = []
    leave = scheduler.driver._leave_early
    scheduler.driver._leave_early = lambda job, *a: (early.append(job.job_id), leave(job, *a))  # type: ignore
    scheduler.play()
    same(store, bits(alone))
    assert len(early) >= 5 and pool.restarts == len(at)
    assert not events(store, "begin", "wait", "step", "stop")
    moved = {row["job_id"]: set[int]() for row in store.jobs()}
    for row in events(store, "start", "resume"):
        moved[row["job_id"]].add(row["devices"][0])
    assert max(map(len, moved.values())) > 1
    service_s = {row["job_id"]: (row["attained_s"], row["solo_s"]) for row in store.jobs()}
    assert all(attained == pytest.approx(solo) for attained, solo in service_s.values())


def test_a_worker_that_dies_between_steps(tmp_path: Path, one_device: Bits) -> None:
    """It is found out when its jobs' states are fetched for a checkpoint, or with its next step."""
    pool = in_process(2)
    store = submit(tmp_path / "state", jobs(tmp_path, 8))
    landed = [0]
    wait = pool.wait

    def killing(workers: Any, timeout_s: float | None) -> Any:
        found = wait(workers, timeout_s)
        landed[0] += found is not None
        if found is not None and landed[0] in (4, 11):
            pool.kill(found[0])  # after its answer
        return found

    pool.wait = killing  # type: ignore[method-assign]
    play(store, pool, max_resident=2, checkpoint_s=0.0)
    same(store, one_device)
    assert pool.restarts == 2


def test_a_job_that_kills_its_worker_ends_up_alone_and_fails(tmp_path: Path, one_device: Bits) -> None:
    """Twice beside others, the third time alone; the others have their bits."""

    def fault(_: str, facts: dict[str, Any]) -> None:
        if "job02" in facts["job_ids"]:
            raise WorkerDied("poisoned")

    pool = in_process(2, FaultPlan(step=fault))
    store = submit(tmp_path / "state", jobs(tmp_path, 8))
    assert play(store, pool, "fifo", max_resident=4).failed == 1
    states = {row["job_id"]: row["state"] for row in store.jobs()}
    assert states.pop("job02") == "FAILED_CRASHED" and set(states.values()) == {"COMPLETED"}
    assert "again and again in its step 1" in store.job("job02")["reason"]
    assert pool.restarts == 3
    mine, theirs = curves(store), dict(one_device[0])
    assert not mine.pop("job02") and theirs.pop("job02") and mine == theirs


class Counting(MonotonicTimes):
    """Every look at the clock takes a millisecond: how busy the machine is makes no difference."""

    _now_s = 0.0

    def go_on_from(self, t_s: float) -> None:
        self._now_s = t_s

    def now_s(self) -> float:
        self._now_s += 1e-3
        return self._now_s


def test_a_worker_that_does_not_answer_is_taken_for_dead(tmp_path: Path, one_device: Bits) -> None:
    class Hanging(InProcessPool):
        hung = False

        def wait(self, workers: Any, timeout_s: float | None) -> Any:
            if self.hung and 1 in workers and self.restarts == 0:
                return super().wait([worker for worker in workers if worker != 1], timeout_s)
            return super().wait(workers, timeout_s)

        def launch(self, worker: int, entries: Sequence[tuple[str, int]]) -> None:
            self.hung = self.hung or worker == 1
            super().launch(worker, entries)

    pool = Hanging(2, in_process(1)._make)
    store = submit(tmp_path / "state", jobs(tmp_path, 8))
    play(store, pool, "fifo", max_resident=2, hang_s=0.5, times=Counting())
    same(store, one_device)
    assert [row["detail"] for row in events(store, "worker-died")] == ["no answer for 0.5 s"]
    assert pool.restarts == 1


def test_out_of_memory_on_a_worker(tmp_path: Path, one_device: Bits) -> None:
    left = [3]

    def fault(_: str, facts: dict[str, Any]) -> None:
        if len(facts["job_ids"]) > 1 and left[0]:
            left[0] -= 1
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    store = submit(tmp_path / "state", jobs(tmp_path, 8))
    play(store, in_process(2, FaultPlan(step=fault)), "fifo", max_resident=3)
    same(store, one_device)
    assert left == [0] and len(events(store, "oom")) == 3


def stop_after(pool: InProcessPool, steps: int, stop: Callable[[], None]) -> None:
    launch, count = pool.launch, [0]

    def counted(worker: int, entries: Sequence[tuple[str, int]]) -> None:
        launch(worker, entries)
        count[0] += 1
        if count[0] == steps:
            stop()

    pool.launch = counted  # type: ignore[method-assign]


def test_a_scheduler_that_is_stopped_goes_on(tmp_path: Path, one_device: Bits) -> None:
    """On another number of devices, too."""
    store = submit(tmp_path / "state", jobs(tmp_path, 8))
    for devices, steps in ((3, 6), (1, 9), (2, 10_000)):
        pool = in_process(devices)
        scheduler = service(store, pool, max_resident=2, checkpoint_s=1e9)
        stop_after(pool, steps, scheduler.driver.request_stop)
        scheduler.play()
    same(store, one_device)
    assert store.fact("starts") == 3


def test_workers_that_die_again_and_again_are_given_up(tmp_path: Path) -> None:
    def fault(_: str, facts: dict[str, object]) -> None:
        raise WorkerDied("broken")

    store = submit(tmp_path / "state", jobs(tmp_path, 30))
    with pytest.raises(HardwareMissingError, match="every worker has died"):
        play(store, in_process(2, FaultPlan(step=fault)), "fifo", max_resident=1)
    assert {row["state"] for row in store.jobs()} & {"COMPLETED"} == set()


def test_a_device_is_given_up_after_so_many_deaths() -> None:
    pool = in_process(2)
    restarts = WorkerRestarts(pool)
    for t_s in range(RESTARTS):
        restarts.died(0, "why", float(t_s))
        restarts.restart(0)
        assert [device for device, _ in restarts.up(float(t_s))] == [0] and not restarts.down(0)
    restarts.died(0, "why", 10.0)
    restarts.restart(0)
    assert restarts.up(11.0) == [] and restarts.down(0) and not restarts.expecting
    restarts.died(1, "why", 5000.0)
    restarts.restart(1)
    assert restarts.expecting and pool.restarts == RESTARTS + 1

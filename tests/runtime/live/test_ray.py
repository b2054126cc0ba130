"""Ray actors as devices. Slow: a cluster of four actors is started on this host."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("ray") is None:  # not importorskip: the cluster is set up before ray is imported
    pytest.skip("ray is not installed", allow_module_level=True)

from loramux_runtime.jobs.jobs_file import BaseConfig
from loramux_runtime.live.drive.pool import WorkerDied
from loramux_runtime.live.drive.ray_cluster import RayCluster
from loramux_runtime.live.drive.ray_pool import RayPool
from loramux_traces.errors import HardwareMissingError, StateError, UsageError

from ...waiting import run_process, until
from . import serving
from .pooling import BASE, Bits, bits, check_decisions, events, same, service
from .serving import jobs, submit

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default::ResourceWarning")]
DEVICES = 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    found = RayCluster(cpus=DEVICES + 1)
    yield found
    found.close()


@pytest.fixture(scope="module")
def pool(cluster: RayCluster) -> Iterator[RayPool]:
    found = RayPool(cluster, BASE.model_dump(mode="json"), DEVICES, device="cpu", threads=1)
    yield found
    found.close()


def replayed(folder: Path, state: str) -> Any:
    """40 jobs of all methods that come over two seconds."""
    return submit(folder / state, jobs(folder, 40), at_s=[0.05 * i for i in range(40)])


def test_forty_jobs_on_four_actors_one_of_which_is_killed(
    pool: RayPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = submit(tmp_path / "alone", jobs(tmp_path, 40))
    assert serving.play(alone, checkpoint_s=1e9).failed == 0
    expected: Bits = bits(alone)
    launched, launch, first = [0], pool.launch, [about.pid for about in pool.started]

    def launch_and_kill(worker: int, entries: Sequence[tuple[str, int]]) -> None:
        launch(worker, entries)
        launched[0] += worker == 2
        if worker == 2 and launched[0] == 20:
            os.kill(pool.started[2].pid, signal.SIGKILL)

    monkeypatch.setattr(pool, "launch", launch_and_kill)
    store = replayed(tmp_path, "state")
    said: list[str] = []
    scheduler = service(store, pool, "aspen", max_resident=3, checkpoint_s=0.5, flush_s=0.1, warn=said.append)
    assert scheduler.play().failed == 0
    same(store, expected)
    lost = events(store, "lost")
    assert lost and {tuple(row["devices"]) for row in lost} == {(2,)}
    assert (
        [row["devices"] for row in events(store, "worker-died")]
        == [[2]]
        == [row["devices"] for row in events(store, "worker-up")]
    )
    assert len(said) == 1 and str(first[2]) in said[0] and pool.started[2].pid != first[2]
    assert {row["devices"] for row in store.jobs()} == {"0", "1", "2", "3"}


@pytest.mark.parametrize("policy", ["fifo", "srtf", "aspen", "aspen-priority", "best-fit"])
def test_placement_is_as_simulated(policy: str, pool: RayPool, tmp_path: Path) -> None:
    check_decisions(pool, policy, tmp_path, 40)


def test_many_calls_are_answered_by_the_same_actor(pool: RayPool) -> None:
    assert {pool.ask(0, "about").pid for _ in range(200)} == {pool.started[0].pid}


def test_an_actor_that_dies_between_two_calls(pool: RayPool) -> None:
    os.kill(pool.started[1].pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match=rf"process {pool.started[1].pid} ended"):
        until(lambda: pool.ask(1, "about") is None)
    pool.restart(1)
    until(lambda: pool.ready(1) is not None)
    assert pool.ask(1, "about").pid == pool.started[1].pid


def test_what_a_worker_cannot_do_is_said(cluster: RayCluster, pool: RayPool) -> None:
    pool.tell(0, "drop", "nobody")
    with pytest.raises(KeyError, match="nobody"):
        pool.ask(0, "about")
    with pytest.raises(HardwareMissingError, match="99 devices"):
        RayPool(cluster, BASE.model_dump(mode="json"), 99, device="cpu")
    with pytest.raises(UsageError, match="auto, cpu or cuda"):
        RayPool(cluster, BASE.model_dump(mode="json"), 1, device="cuda:1")
    with pytest.raises(HardwareMissingError, match="0 GPUs"):
        RayPool(cluster, BASE.model_dump(mode="json"), 1, device="cuda")
    with pytest.raises(StateError, match="Ray open already"):
        RayCluster()


def test_a_base_that_no_actor_can_load(cluster: RayCluster, tmp_path: Path) -> None:
    nowhere = BaseConfig(path=tmp_path / "nowhere").model_dump(mode="json")
    with pytest.raises(StateError, match=r"a worker cannot be started.*not a model folder"):
        RayPool(cluster, nowhere, 1, device="cpu")


def test_ray_listens_on_the_loopback_interface_only(cluster: RayCluster, pool: RayPool) -> None:
    ours = {pool.started[0].pid} | _below(os.getpid())
    sockets = set()
    for pid in ours:
        for name in _links(Path(f"/proc/{pid}/fd")):
            if name.startswith("socket:["):
                sockets.add(name[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                found.append(fields[1].split(":")[0])
    assert len(found) >= DEVICES
    assert set(found) <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert os.environ["RAY_AUTH_MODE"] == "token" and len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_stranger_without_the_token_is_turned_away(cluster: RayCluster) -> None:
    address = cluster.ray.get_runtime_context().gcs_address
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    code = f"import ray; ray.init(address={address!r})"
    ran = run_process([sys.executable, "-c", code], env=environment)
    assert ran.returncode != 0 and "token" in ran.stderr.lower()


def _below(pid: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, todo = set(), [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            found.add(child)
            todo.append(child)
    return found


def _links(folder: Path) -> list[str]:
    try:
        return [os.readlink(path) for path in folder.iterdir()]
    except OSError:
        return []

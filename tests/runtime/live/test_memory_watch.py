"""Another process that takes or frees memory of the device.

Seen, and turned into a capacity that does not flutter.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loramux_runtime.live.watch.memory_watch import CapacityGuard, CudaWatch, FakeWatch, HostWatch, MemoryWatch

GIB = 2.0**30
MIB = 2.0**20
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="HostWatch reads /proc")


def guard(watch: MemoryWatch, capacity: float = 80 * GIB) -> CapacityGuard:
    return CapacityGuard(watch, capacity, every_s=1.0, slack_bytes=GIB, stable_s=10.0)


def test_it_shrinks_at_once_and_grows_when_that_lasts() -> None:
    watch = FakeWatch(90 * GIB)
    it = guard(watch)
    assert it.poll(0.0) is None and it.capacity_bytes == 80 * GIB
    watch.bytes = 60 * GIB
    assert it.poll(0.5) is None  # not asked yet
    assert it.poll(1.0) == 59 * GIB
    watch.bytes = 59.5 * GIB  # a little more taken: within the slack
    assert it.poll(2.0) is None
    watch.bytes = 90 * GIB
    assert [it.poll(float(t)) for t in range(3, 13)] == [None] * 10
    assert it.poll(13.0) == 80 * GIB == it.capacity_bytes
    assert [it.poll(float(t)) for t in range(14, 40)] == [None] * 26


def test_what_comes_and_goes_moves_nothing() -> None:
    watch = FakeWatch(60 * GIB)
    it = guard(watch)
    assert it.poll(0.0) == 59 * GIB
    for t in range(1, 200):
        watch.bytes = (59.2 if t % 9 == 0 else 85.0) * GIB
        assert it.poll(float(t)) is None
    assert it.capacity_bytes == 59 * GIB


def test_it_grows_to_what_was_there_all_the_time() -> None:
    watch = FakeWatch(40 * GIB)
    it = guard(watch)
    assert it.poll(0.0) == 39 * GIB
    found = []
    for t in range(1, 12):
        watch.bytes = (70.0 if t == 5 else 78.0) * GIB
        found.append(it.poll(float(t)))
    assert found == [None] * 10 + [69 * GIB]


def test_a_small_gain_is_not_worth_a_change_unless_it_is_all() -> None:
    watch = FakeWatch(79.5 * GIB)
    it = guard(watch)
    assert it.poll(0.0) == 78.5 * GIB
    watch.bytes = 80.4 * GIB
    assert [it.poll(float(t)) for t in range(1, 30)] == [None] * 29
    watch.bytes = 81 * GIB
    assert [it.poll(float(t)) for t in range(30, 41)] == [None] * 10 + [80 * GIB]


def test_nothing_known_changes_nothing() -> None:
    watch = FakeWatch(None)
    it = guard(watch)
    assert it.poll(0.0) is None and it.capacity_bytes == 80 * GIB
    watch.bytes = 0.0
    assert it.poll(1.0) == 0.0
    assert it.poll(2.0) is None
    watch.bytes = 90 * GIB
    assert it.poll(3.0) is None
    watch.bytes = None  # the wait begins again
    assert it.poll(4.0) is None
    watch.bytes = 90 * GIB
    assert [it.poll(float(t)) for t in range(5, 16)] == [None] * 10 + [80 * GIB]


@pytest.mark.parametrize("seed", range(20))
def test_never_more_than_there_is_and_seldom_moved(seed: int) -> None:
    draw = random.Random(seed)
    watch = FakeWatch(100 * GIB)
    it = guard(watch)
    grown_s = [-100.0]
    for t in range(2000):
        if draw.random() < 0.1:
            watch.bytes = draw.uniform(0, 100) * GIB
        watch.bytes = max(0.0, (watch.bytes or 0.0) + draw.uniform(-0.3, 0.3) * GIB)
        before, new = it.capacity_bytes, it.poll(float(t))
        assert it.capacity_bytes <= min(80 * GIB, watch.bytes)
        assert new is None or (new == it.capacity_bytes and new != before)
        if new is not None and new > before:
            assert t - grown_s[-1] >= 10 and (new - before >= GIB or new == 80 * GIB)
            grown_s.append(float(t))
    assert len(grown_s) > 3


def test_cuda_counts_the_cache_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"others": 10 * GIB, "reserved": 20 * GIB}
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda _: (int(79.5 * GIB - held["others"] - held["reserved"]), int(80 * GIB))
    )
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: int(held["reserved"]))
    watch = CudaWatch(torch.device("cuda:0"), context_bytes=0.5 * GIB)
    assert watch.available_bytes() == 70 * GIB
    held["reserved"] = 60 * GIB  # our cache grows: the same
    assert watch.available_bytes() == 70 * GIB
    held["others"] = 15 * GIB
    assert watch.available_bytes() == 65 * GIB

    def lost(_: torch.device) -> tuple[int, int]:
        raise torch.AcceleratorError("device lost") if hasattr(torch, "AcceleratorError") else RuntimeError("lost")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lost)
    assert watch.available_bytes() is None


ZONES = """Node 0, zone      DMA
  pages free     2816
  pagesets
    cpu: 0
              count:    3
              high:     14
    cpu: 1
              count:    4
  vm stats threshold: 4
"""


def machine(folder: Path, *, cgroup: str, groups: dict[str, str]) -> HostWatch:
    """A machine with 10 GiB available, and 7 pages in its lists.

    We hold 100 pages of no file there.
    """
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {10 * 2**20} kB\n")
    (folder / "proc" / "self" / "statm").write_text("900 150 50 5 0 60 0\n")
    (folder / "proc" / "zoneinfo").write_text(ZONES)
    (folder / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in groups.items():
        file = folder / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return HostWatch(folder / "proc", folder / "cgroup")


PAGE = os.sysconf("SC_PAGE_SIZE")
FREE = 10 * 2**30 + 7 * PAGE
STAT = "anon 1\ninactive_file 1000\nactive_file 5\n"


@linux
@pytest.mark.parametrize(
    ("cgroup", "groups", "expected"),
    [
        ("0::/\n", {}, FREE),
        ("0::/a/b\n", {"a/b/memory.max": "max\n"}, FREE),
        ("0::/a/b\n", {"a/b/memory.max": "500000\n", "a/b/memory.current": "9000\n", "a/b/memory.stat": STAT}, 492000),
        # the limit of the group above
        (
            "0::/a/b\n",
            {
                "a/b/memory.max": "max\n",
                "a/memory.max": "700000\n",
                "a/memory.current": "700000\n",
                "a/memory.stat": STAT,
            },
            1000,
        ),
        # a container whose own group is the root of what it sees, though its path is another
        ("0::/x/y\n", {"memory.max": "500000\n", "memory.current": "9000\n", "memory.stat": STAT}, 492000),
        ("0::/../x\n", {"memory.max": "500000\n", "memory.current": "9000\n", "memory.stat": STAT}, 492000),
        # no limit in version 1
        ("4:memory:/j\n0::/\n", {"memory/j/memory.limit_in_bytes": "9223372036854771712\n"}, FREE),
        (
            "9:cpu,cpuacct:/\n4:memory,x:/j\n0::/\n",
            {
                "memory/j/memory.limit_in_bytes": "500000\n",
                "memory/j/memory.usage_in_bytes": "9000\n",
                "memory/j/memory.stat": "inactive_file 5\ntotal_inactive_file 2000\n",
            },
            493000,
        ),
    ],
)
def test_the_host_and_its_limits(cgroup: str, groups: dict[str, str], expected: float, tmp_path: Path) -> None:
    assert machine(tmp_path, cgroup=cgroup, groups=groups).available_bytes() == expected + 100 * PAGE


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    assert HostWatch(tmp_path, tmp_path).available_bytes() is None


TAKER = """
import sys
for line in sys.stdin:
    held = bytearray(b"x") * (300 << 20) if line == "take\\n" else None
    print("done", flush=True)
"""


def moved(watch: HostWatch, change: Callable[[], object]) -> float:
    """By how many MiB what is available to us fell while `change` ran."""
    before = watch.available_bytes()
    change()
    after = watch.available_bytes()
    assert before is not None and after is not None
    return (before - after) / MIB


@linux
def test_a_child_that_takes_memory_is_seen_and_our_own_use_is_not() -> None:
    """Each change has several tries to be seen alone: other programs come and go."""
    watch = HostWatch()
    with subprocess.Popen(
        [sys.executable, "-c", TAKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as it:
        assert it.stdin is not None and it.stdout is not None

        def say(word: str) -> None:
            assert it.stdin is not None and it.stdout is not None
            it.stdin.write(word + "\n")
            it.stdin.flush()
            assert it.stdout.readline() == "done\n"

        say("free")
        tries = []
        for _ in range(20):
            taken, freed = moved(watch, lambda: say("take")), moved(watch, lambda: say("free"))
            tries.append((taken, freed))
            if abs(taken - 300) < 60 and abs(freed + 300) < 60:
                break
        else:
            pytest.fail(f"MiB taken and freed: {tries}")
        it.stdin.close()
    held: list[bytearray] = []
    own = []
    for _ in range(20):
        own.append(moved(watch, lambda: held.append(bytearray(b"x") * (300 << 20))))
        held.clear()
        if abs(own[-1]) < 60:
            return
    pytest.fail(f"our own 300 MiB looked like {own} MiB of another's")

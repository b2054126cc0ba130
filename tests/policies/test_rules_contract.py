"""What holds for every shipped policy: pure, valid, complete, documented."""

from __future__ import annotations

import inspect
import random

import pytest

from loramux_policies import Policy, create, names
from loramux_policies.loop.job import Job
from loramux_policies.loop.live_view import LiveView
from loramux_policies.loop.plan import DeltaPlan, Pause, Reject, Share, Start
from loramux_policies.registry import find, parameters

from .fake_backend import base, free, job, play, shared

SHIPPED = [
    "aspen",
    "aspen-fifo",
    "aspen-minpad",
    "aspen-priority",
    "best-fit",
    "dot-product",
    "easy",
    "exclusive",
    "fifo",
    "fifo-skip",
    "finish-time-fairness",
    "gittins",
    "las",
    "lookahead-milp",
    "lorafusion",
    "max-min",
    "priority",
    "ps",
    "psjf",
    "psjf-oracle",
    "separate",
    "sjf",
    "sjf-oracle",
    "smallest-memory-time",
    "srtf",
    "srtf-oracle",
    "tiresias",
]
# Short rounds, so that the toy runs below see many of them.
SETTINGS = {
    "finish-time-fairness": "finish-time-fairness:lease_s=7",
    "max-min": "max-min:round_s=5,by=user",
    "priority": "priority:ageing_per_s=0.05",
    "tiresias": "tiresias:thresholds=2/6",
    "gittins": "gittins:median_s=4",
    "lookahead-milp": "lookahead-milp:window=5,slots=3,nodes=20",
}


def told(plan: DeltaPlan) -> tuple[list[tuple[object, ...]], list[float], list[tuple[str, float]]]:
    """Everything a plan asks for, to be compared."""
    actions: list[tuple[object, ...]] = []
    for action in plan.actions:
        match action:
            case Start(job, devices, share):
                actions.append(("start", job.job_id, devices, share))
            case Share(job, share):
                actions.append(("share", job.job_id, share))
            case Pause(job):
                actions.append(("pause", job.job_id))
            case Reject(job, reason, _, _):
                actions.append(("reject", job.job_id, reason))
    return actions, list(plan.reviews), [(job.job_id, attained_s) for job, attained_s in plan.watches]


def random_jobs(seed: int, n: int = 24) -> list[Job]:
    rng = random.Random(seed)
    jobs, now_s = [], 0.0
    for i in range(n):
        now_s += rng.choice([0.0, 0.0, rng.expovariate(1.5)])
        jobs.append(
            job(
                f"j{rng.randrange(10**6):06d}-{i}",
                round(now_s, 1),
                rng.choice([1.0, 2.0, rng.expovariate(0.2) + 0.1]),
                rng.choice([1.0, 2.0, 3.0, 5.0]),
                priority=rng.choice([0, 0, 1, 2]),
                num_gpus=rng.choice([1, 1, 1, 1, 1, 2]),
                user=rng.choice("ab"),
                of=base(rng.choice(["big", "small"]), 2.0) if seed % 2 else None,
                pause_s=0.01 if seed % 3 else 0.0,
                tokens=rng.choice([500.0, 4000.0]),
                fits_type=(True, rng.random() < 0.5),
            )
        )
    return jobs


@pytest.mark.parametrize("name", SHIPPED)
def test_facade_and_snapshot_get_the_same_plan(name: str) -> None:
    policy = create(SETTINGS.get(name, name))
    for seed in range(6):
        seats = (float("inf"), 2.0, 1.0)[seed % 3]
        checked = 0

        def check(view: LiveView, plan: DeltaPlan) -> None:
            nonlocal checked
            checked += 1
            snapshot = view.snapshot()
            before = vars(policy).copy()
            again = policy.place(view)
            assert told(policy.place(snapshot)) == told(plan) == told(again)  # type: ignore[arg-type]
            assert vars(policy) == before
            if not policy.preempts:
                assert not any(isinstance(action, Pause) for action in plan.actions)

        jobs = random_jobs(seed)
        types = [0, 0, 1] if seed % 2 == 0 else [0, 0, 0]
        played = play(policy, jobs, types=types, gib=10.0, seats=seats, phi=free if seed < 3 else shared, on_plan=check)
        assert set(played.finished_s) == {job.job_id for job in jobs}
        assert checked >= len(jobs) / 4


@pytest.mark.parametrize("name", SHIPPED)
def test_order_of_rows_does_not_matter(name: str) -> None:
    policy = create(SETTINGS.get(name, name))
    first = play(policy, random_jobs(1), devices=2, gib=10.0)
    shuffled = random_jobs(1)
    random.Random(5).shuffle(shuffled)
    second = play(policy, shuffled, devices=2, gib=10.0)
    assert first.finished_s == second.finished_s and first.pauses == second.pauses


def test_all_are_registered() -> None:
    assert set(SHIPPED) <= set(names())


@pytest.mark.parametrize("name", SHIPPED)
def test_documented(name: str) -> None:
    cls = find(name)
    text = inspect.getdoc(cls) or ""
    line = text.split("\n")[0]
    assert 20 < len(line) <= 120 and line.endswith(".")
    for parameter in parameters(cls).values():
        assert parameter.default is not inspect.Parameter.empty
        assert f"`{parameter.name}`" in inspect.getsource(cls) + text or any(
            f"`{parameter.name}`" in (inspect.getdoc(parent) or "") for parent in cls.__mro__[1:-1]
        ), f"{name}: {parameter.name} is not explained"


@pytest.mark.parametrize(
    "text",
    [
        "fifo:window=0",
        "aspen:k=0",
        "aspen:candidates=0",
        "aspen:candidates=101",
        "las:quantum_s=0",
        "las:growth=-1",
        "gittins:law=zipf",
        "gittins:shape=99",
        "tiresias:thresholds=5/3",
        "tiresias:thresholds=x",
        "max-min:by=team",
        "finish-time-fairness:lease_s=0",
        "lookahead-milp:nodes=0",
        "separate:k=0",
        "priority:ageing_per_s=-1",
        "easy:window=0",
        "lorafusion:budget_tokens=0",
        "aspen-minpad:k=0",
        "dot-product:saturation_tokens=0",
    ],
)
def test_bad_parameters_are_refused(text: str) -> None:
    from loramux_traces.errors import UsageError

    with pytest.raises(UsageError):
        create(text)


def test_declared_traits() -> None:
    policies: list[Policy] = [create(name) for name in SHIPPED]
    assert {p.name for p in policies if p.oracle} == {"sjf-oracle", "psjf-oracle", "srtf-oracle"}
    assert {p.name for p in policies if p.copies == "separate"} == {"exclusive", "separate"}
    assert {p.name for p in policies if not p.preempts} == {
        *("aspen-fifo", "aspen-minpad", "best-fit", "dot-product", "easy", "exclusive", "fifo", "fifo-skip"),
        *("lookahead-milp", "lorafusion", "ps", "separate", "sjf", "sjf-oracle", "smallest-memory-time"),
    }

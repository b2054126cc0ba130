"""Max-min fairness over jobs and over users, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from loramux_policies import create
from loramux_simulator import simulate
from loramux_traces.canonical import build_trace
from loramux_traces.job import JobSpec


def shares(by: str, users: str, needs: list[float], capacity: float, seats: float) -> list[float]:
    """Of one job per letter of `users`, on one device."""
    jobs: list[Any] = [
        SimpleNamespace(job_id=f"j{i}", user=user, need_bytes=need, num_gpus=1)
        for i, (user, need) in enumerate(zip(users, needs, strict=True))
    ]
    view: Any = SimpleNamespace(n_devices=1, max_resident=seats, capacity_bytes=lambda _: capacity)
    policy: Any = create(f"max-min:by={by}")
    found: list[float] = policy.shares(view, jobs)
    return found


FREE = float("inf")


@pytest.mark.parametrize(
    ("by", "users", "needs", "capacity", "seats", "wanted"),
    [
        ("user", "UUV", [1, 1, 1], FREE, 1, [1 / 4, 1 / 4, 1 / 2]),
        ("job", "UUV", [1, 1, 1], FREE, 1, [1 / 3] * 3),
        ("user", "UUUV", [1, 1, 1, 1], FREE, 2, [1 / 3, 1 / 3, 1 / 3, 1]),  # V has all it can use, U the rest
        ("user", "UUWWV", [1] * 5, FREE, 4, [3 / 4] * 4 + [1]),  # what V cannot use is shared equally
        ("job", "UV", [3, 1], 2, FREE, [1 / 2] * 2),  # equal shares, not equal bytes
        ("user", "UUV", [2, 4, 3], 6, FREE, [1 / 2, 1 / 2, 1]),
        ("job", "UV", [3, 1], 2, 0.5, [1 / 4] * 2),  # whichever is scarcer
        ("job", "UV", [1, 1], FREE, FREE, [1, 1]),
        ("user", "UUV", [1, 1, 1], 3, 3, [1, 1, 1]),
    ],
)
def test_shares(by: str, users: str, needs: list[float], capacity: float, seats: float, wanted: list[float]) -> None:
    assert shares(by, users, needs, capacity, seats) == pytest.approx(wanted)


@pytest.mark.parametrize(("by", "had"), [("user", 1 / 2), ("job", 1 / 3)])
def test_rounds_make_it_come_true(by: str, had: float) -> None:
    """One seat, a user with two jobs and a user with one.

    The latter's is done when it has had its share.
    """
    names = (("u0", "U"), ("u1", "U"), ("v", "V"))
    trace = build_trace(
        "users",
        [
            JobSpec(
                job_id=job_id, submit_s=0.0, base_model="smollm2-135m", method="lora", batch_size=4, seq_len=128.0,
                duration_s=1000.0, user=user,
            )
            for job_id, user in names
        ],
    )  # fmt: skip
    jobs = simulate(trace, f"max-min:by={by},round_s=10", devices="1xl4", max_resident=1, ideal=True).jobs
    assert jobs.set_index("job_id")["finish_time"]["v"] == pytest.approx(1000.0 / had, rel=0.03)

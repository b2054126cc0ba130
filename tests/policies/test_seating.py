"""Shares below one seat.

Who is in which fused step, and what speed lies between whole numbers of seats.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux_policies.stepping.shares import phi_at, seating


@given(st.lists(st.sampled_from([1.0, 0.5, 0.25, 1 / 3, 2 / 3, 0.1, 0.9, 1e-3]), min_size=1, max_size=9))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_everybody_gets_the_share_it_has(shares: list[float]) -> None:
    """In the weights exactly, in any stretch of steps nearly.

    No step is empty or off by a whole job.
    """
    seats = seating(shares)
    total = sum(shares)
    assert sum(seats.weights()) == pytest.approx(1.0)
    assert min(seats.weights()) > 0.0
    wanted = [share / min(1.0, total) for share in shares]
    had = [
        sum(w for w, members in zip(seats.weights(), seats.sets, strict=True) if i in members)
        for i in range(len(shares))
    ]
    assert had == pytest.approx(wanted, abs=1e-8)
    sizes = {len(members) for members in seats.sets}
    assert min(sizes) >= max(1, int(total - 1e-6)) and max(sizes) <= max(1, int(total + 1 - 1e-9) + 1)
    counts = [0] * len(shares)
    for turn in range(1000, 2000):
        for i in seats.at(turn):
            counts[i] += 1
    assert counts == pytest.approx([1000 * part for part in wanted], abs=8)


def test_speed_between_whole_seats_is_in_between() -> None:
    assert phi_at(lambda n: n**0.5, 2.5) == pytest.approx(0.5 * (2**0.5 + 3**0.5))
    assert phi_at(lambda n: float(n), 3.0 - 1e-12) == 3.0

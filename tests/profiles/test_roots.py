"""The root finder gives scipy's answers to the last digit.

Tables of lengths, and with them results, depend on it.
"""

from __future__ import annotations

from math import tanh

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from loramux_profiles.roots import root


@settings(deadline=None)
@given(
    st.floats(0.1, 5.0), st.floats(0.2, 3.0), st.floats(0.01, 4.0), st.floats(0.01, 9.0), st.sampled_from([1e-9, 1e-12])
)
def test_the_same_digits_as_brentq(zero: float, slope: float, below: float, above: float, tolerance: float) -> None:
    def f(x: float) -> float:
        return tanh(slope * (x - zero)) + 0.1 * (x - zero) ** 3

    a, b = zero - below, zero + above
    assert root(f, a, b, xtol=tolerance, rtol=1e-9) == brentq(f, a, b, xtol=tolerance, rtol=1e-9)


def test_both_ends_on_one_side_are_refused() -> None:
    with pytest.raises(ValueError, match="change of sign"):
        root(lambda x: x * x + 1.0, -1.0, 1.0, xtol=1e-9, rtol=1e-9)

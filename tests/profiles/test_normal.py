"""The normal CDF without scipy is scipy's, to the last digit."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from loramux_profiles.normal import cdf


def test_every_digit_is_scipys() -> None:
    rng = np.random.default_rng(0)
    edges = np.array([0.0, -0.0, 1e-300, 2**0.5, -(2**0.5), 8 * 2**0.5, -8 * 2**0.5, 40.0, -40.0, 1e9, -1e9])
    for x in (edges, rng.normal(size=50_000) * 3, rng.uniform(-36, 36, 50_000), np.linspace(-1.5, 1.5, 50_001)):
        assert np.array_equal(cdf(x), ndtr(x))

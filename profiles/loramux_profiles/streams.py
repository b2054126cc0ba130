"""Random streams are keyed by (seed, job id, purpose).

What one job draws never depends on another job or on the order of rows.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np

_SCALE: Final = 2.0**-64


def stream_seed(seed: int, job_id: str, purpose: str, n: int = 0) -> int:
    """Return a 64-bit seed, stable across machines and Python versions."""
    text = f"{seed}|{job_id}|{purpose}|{n}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def generator(seed: int, job_id: str, purpose: str, n: int = 0) -> np.random.Generator:
    """Return a numpy generator of its own (about 15 us; use `uniform` for a single draw)."""
    return np.random.Generator(np.random.PCG64(stream_seed(seed, job_id, purpose, n)))


def uniform(seed: int, job_id: str, purpose: str, n: int = 0) -> float:
    """Return one draw, uniform in (0, 1)."""
    return (stream_seed(seed, job_id, purpose, n) + 0.5) * _SCALE

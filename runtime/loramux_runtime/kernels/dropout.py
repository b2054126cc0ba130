"""Dropout masks that are computed from a key, not drawn: the backward pass makes the same mask again, none is stored.

The key of an element is (job seed, optimizer step, index of the sample in the job's stream, position in the sample)
for the row, (layer, projection) for the site, and the channel: never the packed row. So a job's masks do not depend on
who shares the batch or on how its micro-batch is split, and the experts of one projection share a mask (the authors'
MoLE code draws one each: stated deviation). Storing masks and outputs instead costs about 13 GiB at 4k tokens on an 8B
model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

_MIX_1: Final = 0x7FEB352D
_MIX_2: Final = 0x846CA68B - (1 << 32)
"""Multipliers of the `lowbias32` integer hash (Wellons 2018), the second as a signed 32-bit number."""

Int32s = np.ndarray[Any, np.dtype[np.int32]]


def _finalise(h: np.ndarray[Any, np.dtype[np.uint32]]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """lowbias32 on the host."""
    h = h ^ (h >> np.uint32(16))
    h = h * np.uint32(0x7FEB352D)
    h = h ^ (h >> np.uint32(15))
    h = h * np.uint32(0x846CA68B)
    return h ^ (h >> np.uint32(16))


def row_keys(seed: int, step: int, samples: np.ndarray[Any, Any], positions: np.ndarray[Any, Any]) -> Int32s:
    """One 32-bit key per token of a job's micro-batch: samples and positions [T] -> [T] int32."""
    start = hashlib.blake2b(f"{seed}|{step}".encode(), digest_size=4).digest()
    h = np.full(samples.shape, int.from_bytes(start, "little"), dtype=np.uint32)
    wide = samples.astype(np.uint64)
    for part in (wide & np.uint64(0xFFFFFFFF), wide >> np.uint64(32), positions.astype(np.uint64)):
        h = _finalise(h ^ part.astype(np.uint32))
        h = h + np.uint32(0x9E3779B9)
    return h.view(np.int32)


@lru_cache(maxsize=4096)
def site_key(layer: int, projection: str) -> int:
    """A 32-bit key of one adapted linear, as a signed number."""
    digest = hashlib.blake2b(f"{layer}|{projection}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)


@lru_cache(maxsize=64)
def _channel_keys(channels: int, device: torch.device) -> Tensor:
    h = _finalise(np.arange(channels, dtype=np.uint32) * np.uint32(0x9E3779B1))
    return torch.from_numpy(h.view(np.int32).copy()).to(device)


def threshold(p: float) -> int:
    """An element is kept where its signed 32-bit hash is at least this: keeps a share 1 - p of all hashes."""
    return min(round(p * (1 << 32)) - (1 << 31), (1 << 31) - 1)


def keep_mask(rows: Tensor, site: int, channels: int, limit: Tensor) -> Tensor:
    """rows [T] int32 keys, limit [T, 1] int32 thresholds -> [T, channels] bool, True where the element stays.

    Multiply-xorshift rounds of 32-bit integers: the same bits on every device. `>>` of signed integers copies the sign
    down, hence the `&` (without it h ^ (h >> n) is never negative, and nothing is dropped). The last round ends with
    its product, whose high bits, which the comparison goes by, are its best.
    """
    h = (rows.unsqueeze(1) ^ site) * _MIX_1  # [T, 1]: decorrelates the rows before the channels come in
    h = (h ^ ((h >> 15) & 0x1FFFF)) ^ _channel_keys(channels, rows.device)
    h *= _MIX_2
    h ^= (h >> 16) & 0xFFFF
    h *= _MIX_1
    return h >= limit


@dataclass(frozen=True, slots=True)
class DropKey:
    """The masks of one site for a range of rows. The factor 1 / (1 - p) is applied to the narrow side, after A x."""

    rows: Tensor
    """[N] int32."""
    site: int
    limit: Tensor
    """[N, 1] or [1, 1] int32."""

    def mask(self, channels: int) -> Tensor:
        """[N, channels] bool, True where the element stays."""
        return keep_mask(self.rows, self.site, channels, self.limit)

    def apply(self, x: Tensor) -> Tensor:
        """x [N, channels] with dropped elements zero, the others unscaled (so nothing is rounded)."""
        return x * self.mask(x.shape[1])

    def at(self, rows: Tensor) -> DropKey:
        """The masks of these rows [M] int64."""
        return DropKey(self.rows[rows], self.site, self.limit if len(self.limit) == 1 else self.limit[rows])

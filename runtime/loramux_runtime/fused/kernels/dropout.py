"""Dropout masks are computed from a key, not drawn.

The backward pass makes the same mask again, and none is stored.

The key of an element is (job seed, optimizer step, index of the sample in the job's stream,
position in the sample) for the row, (layer, projection) for the site, and the channel: never the
packed row. So a job's masks do not depend on who shares the batch or on how its micro-batch is
split, and the experts of one projection share a mask (the authors' MoLE code draws one each: stated
deviation). Storing masks and outputs instead costs about 13 GiB at 4k tokens on an 8B model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

_MIX_1: Final = 0x7FEB352D
_MIX_2: Final = 0x846CA68B - (1 << 32)
"""Multipliers of the `lowbias32` integer hash (Wellons 2018).

The second one is written as a signed 32-bit number.
"""

Int32s = np.ndarray[Any, np.dtype[np.int32]]


def _finalise(h: np.ndarray[Any, np.dtype[np.uint32]]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Apply the hash lowbias32 on the host."""
    h = h ^ (h >> np.uint32(16))
    h = h * np.uint32(0x7FEB352D)
    h = h ^ (h >> np.uint32(15))
    h = h * np.uint32(0x846CA68B)
    return h ^ (h >> np.uint32(16))


def row_keys(seed: int, step: int, samples: np.ndarray[Any, Any], positions: np.ndarray[Any, Any]) -> Int32s:
    """Return one 32-bit key per token of a job's micro-batch.

    samples and positions [T] -> [T] int32.
    """
    start = hashlib.blake2b(f"{seed}|{step}".encode(), digest_size=4).digest()
    h = np.full(samples.shape, int.from_bytes(start, "little"), dtype=np.uint32)
    wide = samples.astype(np.uint64)
    for part in (wide & np.uint64(0xFFFFFFFF), wide >> np.uint64(32), positions.astype(np.uint64)):
        h = _finalise(h ^ part.astype(np.uint32))
        h = h + np.uint32(0x9E3779B9)
    return h.view(np.int32)


@lru_cache(maxsize=4096)
def site_key(layer: int, projection: str) -> int:
    """Return a 32-bit key of one adapted linear, as a signed number."""
    digest = hashlib.blake2b(f"{layer}|{projection}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)


@lru_cache(maxsize=64)
def _channel_keys(channels: int, device: torch.device) -> Tensor:
    h = _finalise(np.arange(channels, dtype=np.uint32) * np.uint32(0x9E3779B1))
    return torch.from_numpy(h.view(np.int32).copy()).to(device, non_blocking=True)


def threshold(p: float) -> int:
    """Return how many of 65,536 hashes drop an element: p to within 8e-6."""
    return round(p * 65536)


def row_hashes(rows: Tensor, site: int) -> Tensor:
    """Return the site's row keys, decorrelated before the channels come in.

    rows [T] int32 keys -> [T, 1] int32.
    """
    h = (rows.unsqueeze(1) ^ site) * _MIX_1
    return h ^ ((h >> 15) & 0x1FFFF)


def keep_words(rows: Tensor, channels: Tensor, last: Tensor, out: Tensor, scratch: Tensor) -> Tensor:
    """Return masks as words: -1 where the element stays, 0 where it is dropped.

    `out` [T, C] int32 is filled and returned. rows [T, 1] from `row_hashes`, channels [ceil(C / 2)]
    keys, `last` [T, 1] or [1, 1]: the largest 16-bit hash that drops, scratch [2, T, ceil(C / 2)],
    all int32.

    The arithmetic is multiply-xorshift rounds of 32-bit integers: the same bits on every device.
    One hash decides two channels, c by its upper and c + half by its lower 16 bits (half the
    passes). The masks are words instead of bools, because a comparison and a product with bools do
    not vectorise on CPU: 0.45 and 0.7 ns per element; the `sub`, `>>` and `&` here take 0.3
    together.
    """
    half = len(channels)
    h, other = scratch[0], scratch[1]
    torch.bitwise_xor(rows, channels, out=h)
    h *= _MIX_2
    h ^= torch.bitwise_right_shift(h, 16, out=other)
    h *= _MIX_1
    # `>>` carries the sign in: the upper bits of h ^ (h >> 15) are those of h and of its sign. They
    # are no hash, and are not used
    lower = torch.bitwise_right_shift(h, 15, out=other).bitwise_xor_(h).bitwise_and_(0xFFFF)
    h >>= 16
    torch.sub(last - 0x8000, h, out=out[:, :half])
    torch.sub(last, lower[:, : out.shape[1] - half], out=out[:, half:])
    out >>= 31
    return out


_WORDS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BLOCK: Final = 1 << 17
"""Elements whose mask is made and used at a time on CPU, so that the words stay in the cache.

It takes 1.2 ns per element; 1.7 at 2^16 for the number of calls, 5 at 2^20 for the memory.
"""


_BLOCK_DEVICE: Final = 1 << 24
"""The same on a device, where only the memory of the words matters.

That is 128 MiB at most, with few launches.
"""


@dataclass(frozen=True, slots=True)
class DropKey:
    """A drop key makes the masks of one site for a range of rows.

    The factor 1 / (1 - p) is applied to the narrow side, after A x.
    """

    rows: Tensor
    """[N] int32."""
    site: int
    limit: Tensor
    """[N, 1] or [1, 1] int32."""

    def mask(self, channels: int) -> Tensor:
        """Return the masks as [N, channels] bool, True where the element stays."""
        out = torch.empty(len(self.rows), channels, dtype=torch.bool, device=self.rows.device)
        for a, b, words in self._blocks(channels, 4):
            torch.lt(words, 0, out=out[a:b])
        return out

    def apply(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return x [N, channels] with dropped elements zero, and the others unscaled.

        So nothing is rounded; `out` may be x.
        """
        if out is None:
            out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for a, b, words in self._blocks(x.shape[1], x.element_size()):
            torch.bitwise_and(x[a:b].view(words.dtype), words, out=out[a:b].view(words.dtype))
        return out

    def apply_and_add(self, x: Tensor, back: Tensor, into: Tensor, out: Tensor | None = None) -> Tensor:
        """Return x with dropped elements zero, and add `back` under the same mask to `into`.

        `back` is [N, channels]. The backward pass needs both; the mask is made once. `back` is
        overwritten; `out` may be x.
        """
        if out is None:
            out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for a, b, words in self._blocks(x.shape[1], x.element_size()):
            torch.bitwise_and(x[a:b].view(words.dtype), words, out=out[a:b].view(words.dtype))
            back[a:b].view(words.dtype).bitwise_and_(words)
            into[a:b] += back[a:b]
        return out

    def at(self, rows: Tensor) -> DropKey:
        """Return the masks of these rows [M] int64."""
        limit = self.limit if len(self.limit) == 1 else self.limit.index_select(0, rows)
        return DropKey(self.rows.index_select(0, rows), self.site, limit)

    def _blocks(self, channels: int, width: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield row ranges with their masks, as words of `width` bytes."""
        n, device = len(self.rows), self.rows.device
        step = max(1, (_BLOCK if device.type == "cpu" else _BLOCK_DEVICE) // channels)
        rows, last = row_hashes(self.rows, self.site), self.limit - 1
        keys = _channel_keys((channels + 1) // 2, device)
        words = torch.empty(min(step, n), channels, dtype=torch.int32, device=device)
        scratch = torch.empty(2, min(step, n), len(keys), dtype=torch.int32, device=device)
        narrow = words if width == 4 else torch.empty(words.shape, dtype=_WORDS[width], device=device)
        for a in range(0, n, step):
            b = min(n, a + step)
            own = last if len(last) == 1 else last[a:b]
            keep = keep_words(rows[a:b], keys, own, words[: b - a], scratch[:, : b - a])
            yield a, b, keep if width == 4 else narrow[: b - a].copy_(keep)

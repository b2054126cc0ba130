"""Draw the LoRA columns of a job with a seed.

No public trace of LoRA fine-tuning jobs exists, so these columns are modelled. The shares are
assumptions, chosen to be varied enough to matter: base models are skewed as in a public LoRA
serving trace (86 bases, the top one 31%), methods favour plain LoRA, ranks and batch sizes are
those of common recipes. Every trace made with them says so in its provenance.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from loramux_traces.errors import UsageError
from loramux_traces.sampling import pick, uniforms

Weighted = tuple[tuple[str, float], ...]
#: Columns that a mix draws.
DRAWN: Final = ("base_model", "method", "rank", "batch_size", "seq_len", "recompute", "priority")
RECOMPUTE_FROM: Final = 1024
"""Mean tokens from which a job recomputes its activations, as users do: without it one row of 2,048
tokens (p99.9 about 9,000) of a MixLoRA job on an 8B model needs up to 124 GiB by the memory model,
and fits no device.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraMix:
    """A LoraMix holds the share of each value of the LoRA columns (weights need not sum to 1)."""

    base_models: Weighted = (
        ("llama-2-7b", 0.31),
        ("llama-3-8b", 0.19),
        ("qwen2.5-7b", 0.14),
        ("mistral-7b", 0.12),
        ("llama-2-13b", 0.08),
        ("tinyllama-1.1b", 0.06),
        ("gemma-2b", 0.05),
        ("llama-7b", 0.05),
    )
    methods: Weighted = (("lora", 0.55), ("mixlora", 0.20), ("mola", 0.10), ("dynmole", 0.10), ("loramoe", 0.05))
    ranks: tuple[tuple[int, float], ...] = ((8, 0.35), (16, 0.40), (32, 0.15), (64, 0.10))
    batch_sizes: tuple[tuple[int, float], ...] = ((4, 0.20), (8, 0.30), (16, 0.35), (32, 0.15))
    seq_lens: tuple[tuple[int, float], ...] = ((128, 0.15), (256, 0.30), (512, 0.35), (1024, 0.15), (2048, 0.05))
    priorities: tuple[tuple[int, float], ...] = ((0, 0.70), (1, 0.20), (2, 0.10))

    def draw(self, seed: int, n: int) -> list[dict[str, Any]]:
        """Draw the DRAWN columns of `n` jobs; job i depends on (seed, i) alone."""
        columns: dict[str, list[Any]] = {
            "base_model": pick(uniforms(seed, "mix-base-model", n), self.base_models),
            "method": pick(uniforms(seed, "mix-method", n), self.methods),
            "rank": pick(uniforms(seed, "mix-rank", n), self.ranks),
            "batch_size": pick(uniforms(seed, "mix-batch-size", n), self.batch_sizes),
            "seq_len": pick(uniforms(seed, "mix-seq-len", n), self.seq_lens),
            "priority": pick(uniforms(seed, "mix-priority", n), self.priorities),
        }
        columns["recompute"] = [seq_len >= RECOMPUTE_FROM for seq_len in columns["seq_len"]]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def with_shares(self, *, base_models: str = "", methods: str = "") -> LoraMix:
        """Return the same mix with other base models or methods.

        Each is given as `name:weight,name:weight`.
        """
        return LoraMix(
            base_models=parse_shares(base_models) if base_models else self.base_models,
            methods=parse_shares(methods) if methods else self.methods,
            ranks=self.ranks,
            batch_sizes=self.batch_sizes,
            seq_lens=self.seq_lens,
            priorities=self.priorities,
        )


_SHARE: Final = re.compile(r"([^:,]+)(?::([0-9.eE+-]+))?")


def parse_shares(text: str) -> Weighted:
    """Return `a:2,b:1` as (("a", 2.0), ("b", 1.0)); a missing weight is 1.

    Raises UsageError for anything else.
    """
    shares = []
    for part in text.split(","):
        match = _SHARE.fullmatch(part.strip())
        try:
            weight = float(match[2] or 1) if match else 0.0
        except ValueError:
            weight = 0.0
        if match is None or not 0 < weight < 1e12:
            raise UsageError(
                f"{part!r} in {text!r}: expected value:weight with a weight above 0, such as llama-2-7b:0.6"
            )
        shares.append((match[1].strip(), weight))
    return tuple(shares)


DEFAULT_MIX: Final = LoraMix()

"""The shape of a model is what memory and time of a step depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

BYTES: Final[dict[str, float]] = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0}
"""Bytes per weight.

int8 is of the layers' matrices only; embedding, head and norms stay at 2 (bitsandbytes).
"""
ATTENTION: Final = ("q", "k", "v", "o")
TARGETS: Final[dict[str, tuple[str, ...]]] = {
    "all-linear": ("q", "k", "v", "o", "gate", "up", "down"),
    "attention": ATTENTION,
    "mlp": ("gate", "up", "down"),
    "qv": ("q", "v"),
}


class Linear(NamedTuple):
    """Describes one linear of a decoder layer: y = W x with W [n_out, n_in]."""

    name: str
    n_in: int
    n_out: int

    @property
    def size(self) -> int:
        """Return the number of weights of the linear."""
        return self.n_in * self.n_out

    def lora(self, rank: int) -> int:
        """Return the number of parameters of a LoRA pair of this rank."""
        return rank * (self.n_in + self.n_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Describes a decoder-only transformer by its dimensions.

    `kv_heads` < `heads` is grouped-query attention; `gated` means gate, up and down.
    """

    name: str
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied_embeddings: bool = False
    qkv_bias: bool = False
    gated: bool = True
    qk_norm: bool = False
    """Norms of queries and keys by head (Qwen3); their inputs are kept for the backward pass."""
    post_norms: bool = False
    """Norms of the outputs of attention and FFN as well (GLM-4, Gemma 2 and 3)."""
    fused_qkv: bool = False
    """One projection for queries, keys and values (Phi-3)."""
    source: str = ""

    @property
    def q_dim(self) -> int:
        """Return the width of the queries, and of the attention output."""
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Return the width of the keys, and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Return the linears of one layer, by the short names that target_modules means."""
        d, f = self.hidden, self.ffn
        attention = (
            Linear("q", d, self.q_dim),
            Linear("k", d, self.kv_dim),
            Linear("v", d, self.kv_dim),
            Linear("o", self.q_dim, d),
        )
        mlp = (Linear("up", d, f), Linear("down", f, d))
        return (*attention, Linear("gate", d, f), *mlp) if self.gated else (*attention, *mlp)

    def targets(self, target_modules: str) -> tuple[Linear, ...]:
        """Return the linears an adapter sits on (`all-linear`, `attention`, `mlp`, `qv`)."""
        names = TARGETS[target_modules]
        return tuple(linear for linear in self.linears if linear.name in names)

    @property
    def layer_matmul_params(self) -> int:
        """Return the number of weights of the matrices of all layers."""
        return self.layers * sum(linear.size for linear in self.linears)

    @property
    def matmul_params(self) -> int:
        """Return P of the time model: the weights that are multiplied for every token.

        The head is included, the embedding is not.
        """
        return self.layer_matmul_params + self.vocab * self.hidden

    @property
    def params(self) -> int:
        """Return the number of all parameters, as a checkpoint counts them.

        RMS norms have no bias; those of queries and keys are as wide as a head.
        """
        embeddings = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        norms = ((4 if self.post_norms else 2) * self.layers + 1) * self.hidden
        norms += 2 * self.layers * self.head_dim if self.qk_norm else 0
        biases = self.layers * (self.q_dim + 2 * self.kv_dim) if self.qkv_bias else 0
        return self.layer_matmul_params + embeddings + norms + biases

    def weight_bytes(self, dtype: str) -> int:
        """Return the bytes of the frozen weights at bf16, fp16, fp32 or int8."""
        if dtype == "int8":
            return self.layer_matmul_params + 2 * (self.params - self.layer_matmul_params)
        return int(BYTES[dtype] * self.params)

"""What a `model_type` means for the shape of a model, beyond the numbers of its config.json.

A kind of model that is not here may have other matrices than the numbers seem to say (experts,
state spaces, latent attention), so its configuration is refused rather than read as a llama's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

FALCON: Final = ("falcon", "RefinedWeb", "RefinedWebModel")
"""Falcon, and what its first files call its two forms."""
UNGATED: Final = frozenset(
    (
        *("gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "codegen", "opt", "bloom", "phi", "starcoder2"),
        *("nemotron", "arcee", "persimmon", "apertus", "nanochat", *FALCON),
    )
)
"""Kinds whose FFN has two matrices, up and down."""
GATED: Final = frozenset(
    (
        *("llama", "code_llama", "mistral", "ministral", "ministral3", "qwen", "qwen2", "qwen3", "seed_oss"),
        *("gemma", "gemma2", "gemma3", "gemma3_text", "vaultgemma", "chatglm", "glm", "glm4", "phi3"),
        *("cohere", "cohere2", "stablelm", "stablelm_epoch", "olmo", "olmo2", "olmo3", "granite", "smollm3"),
        *("ernie4_5", "exaone", "exaone4", "helium", "hunyuan_v1_dense", "internlm", "internlm2", "internlm3"),
        *("baichuan", "deepseek", "minicpm", "xverse", "aquila", "orion", "bitnet"),
    )
)
"""Kinds whose FFN has three matrices, gate, up and down."""
TIED: Final = frozenset(
    (
        *("gemma", "gemma2", "gemma3", "gemma3_text", "vaultgemma", "gpt2", "gpt_bigcode", "gpt_neo", "opt", "bloom"),
        *("cohere", "cohere2", "starcoder2", "smollm3", "ernie4_5", "minicpm", *FALCON),
    )
)
"""Kinds for which embeddings are tied where the file does not say so."""
POST_NORMS: Final = frozenset(("gemma2", "gemma3", "gemma3_text", "glm4"))
"""Kinds with norms of the outputs of attention and FFN beside those of their inputs."""
QK_NORM: Final = frozenset(("qwen3", "gemma3", "gemma3_text", "exaone4", "hunyuan_v1_dense"))
"""Kinds with norms of queries and keys by head."""
KV_HEADS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("ernie4_5", "glm", "glm4", "internlm3", "starcoder2"), 2),
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text", "smollm3", "vaultgemma"), 4),
    "bitnet": 5,
    **dict.fromkeys(("exaone", "ministral", "ministral3", "mistral", "seed_oss"), 8),
    "gemma": 16,
    "helium": 20,
    **dict.fromkeys(("exaone4", "qwen2", "qwen3", "stablelm"), 32),
}
"""Heads of keys and values where the file does not name them, as transformers' classes have it.

Of the other kinds, and where the file says null, they are as many as those of the queries.
"""
HEAD_DIM: Final[Mapping[str, int]] = {
    **dict.fromkeys(("ernie4_5", "glm", "glm4", "helium", "internlm3", "ministral3", "qwen3", "seed_oss"), 128),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "vaultgemma"), 256),
}
"""Size of a head where the file does not say it; of the other kinds the hidden size by heads."""
QUANTISED: Final = ("quantization_config", "compression_config", "quantization")
_EXPERTS: Final = re.compile(r"(?:.*_)?(?:num|n)_(?:\w+_)?experts")


def kind_faults(data: Mapping[str, Any], kind: str) -> list[tuple[str, Any, str]]:
    """Return (key, value, what is allowed) for what makes a model one whose shape is not known."""
    faults: list[tuple[str, Any, str]] = []
    if kind and kind not in GATED | UNGATED:
        known = ", ".join(sorted(GATED | UNGATED))
        faults.append(("model_type", kind, f"write llama if its layers have a llama's matrices, else one of {known}"))
    for key, value in data.items():
        if key in QUANTISED and value:
            faults.append((key, "", "quantised weights are not supported: give the bf16 or fp32 model"))
        counts = value if isinstance(value, list) else [value]
        if _EXPERTS.fullmatch(key) and any(isinstance(count, int | float) and count > 1 for count in counts):
            faults.append((key, value, "a base model with experts of its own is not supported"))
    return faults

"""Shapes of a config.json hold the matrices of the model that transformers builds from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from loramux_profiles.hf_config import shape_from_dict
from loramux_profiles.model_kinds import FALCON, GATED, KV_HEADS, POST_NORMS, QK_NORM, TIED, UNGATED
from loramux_runtime.fused.base_config import FAMILIES

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96}
FFN = {"intermediate_size": 160}
SHARED = {**FFN, "num_key_value_heads": 2, "head_dim": 16}
UNSHARED: dict[str, dict[str, Any]] = {
    "opt": {"ffn_dim": 160, "word_embed_proj_dim": 64},
    "gpt_neo": {"attention_types": [[["global"], 2]], **FFN},
    **dict.fromkeys(("gpt_neox", "persimmon", "phi"), FFN),
    **{kind: {} for kind in ("gpt2", "gpt_bigcode", "gptj", "codegen", "bloom", "falcon")},
}
"""What is said beside the sizes of kinds in which each head has its own keys, or all share one."""
KINDS = sorted(kind for kind in GATED | UNGATED if kind in CONFIG_MAPPING and kind != "gemma3")  # gemma3 sees images
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((kind, UNSHARED.get(kind, SHARED)) for kind in KINDS),
    ("falcon", {"multi_query": False}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"ffn_hidden_size": 160}),
    ("gpt_bigcode", {"multi_query": False}),
]


@pytest.mark.parametrize(("kind", "changes"), VARIANTS)
def test_the_matrices_are_those_that_transformers_builds(kind: str, changes: dict[str, Any]) -> None:
    written: dict[str, Any] = {**SIZES, "pad_token_id": None, **changes}
    config = CONFIG_MAPPING[kind](**written)
    shape = shape_from_dict(config.to_dict(), kind)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    tables = {id(one.weight) for one in model.modules() if isinstance(one, torch.nn.Embedding)}
    head = model.get_output_embeddings().weight
    found = sum(
        one.numel() for one in model.parameters() if one.ndim == 2 and one is not head and id(one) not in tables
    )
    assert shape.layer_matmul_params == found
    assert shape.tied_embeddings == bool(config.tie_word_embeddings) == (kind in TIED)
    if kind in QK_NORM | POST_NORMS | set(FAMILIES):
        assert shape.params == sum(one.numel() for one in model.parameters())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {*FALCON, "gpt_bigcode", "gpt_neo"}])
def test_what_a_file_leaves_out_is_what_transformers_takes(kind: str) -> None:
    written = {"hidden_size": 640, "num_hidden_layers": 2, "num_attention_heads": 160, "vocab_size": 96, **FFN}
    config = CONFIG_MAPPING[kind](**written)
    shape = shape_from_dict({"model_type": kind, **written, "ffn_dim": 160}, kind)
    dim = getattr(config, "head_dim", None) or 640 // 160
    heads = getattr(config, "num_key_value_heads", None) or 160
    assert (shape.heads, shape.kv_heads, shape.head_dim) == (160, heads, dim)
    if KV_HEADS.get(kind) and kind in FAMILIES:
        without = shape_from_dict({"model_type": kind, **written, "num_key_value_heads": None}, kind)
        assert without.kv_heads == 160

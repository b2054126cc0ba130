"""Shapes: parameter counts as the checkpoints have them, Hugging Face configurations.

The data are found in a wheel too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_profiles import datafiles
from loramux_profiles.shape_catalog import load_shape, shape_names
from loramux_profiles.shapes import ModelShape
from loramux_traces.errors import InvalidInputError, UsageError

# Sizes of the published checkpoints (sum over their tensors).
CHECKPOINTS = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-3-8b": 8_030_261_248,
    "chatglm2-6b": 6_243_584_000,
    "glm-4-9b": 9_399_951_360,
    "qwen2.5-7b": 7_615_616_512,
    "mistral-7b": 7_241_732_096,
    "gemma-2b": 2_506_172_416,
    "smollm2-135m": 134_515_008,
    "llama-tiny": 7_260_416,  # no checkpoint: what transformers builds
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_parameter_counts_are_those_of_the_checkpoints(name: str) -> None:
    assert load_shape(name).params == CHECKPOINTS[name]


def test_every_shipped_shape_is_checked() -> None:
    assert shape_names() == list(CHECKPOINTS)


def test_bytes_by_dtype() -> None:
    shape = load_shape("llama-2-7b")
    assert shape.weight_bytes("bf16") == shape.weight_bytes("fp16") == 2 * shape.params
    assert shape.weight_bytes("fp32") == 4 * shape.params
    assert shape.layer_matmul_params < shape.weight_bytes("int8") < shape.weight_bytes("bf16")


def test_hugging_face_ids_are_aliases() -> None:
    assert load_shape("meta-llama/Llama-2-7b-hf") is load_shape("llama-2-7b")
    assert load_shape("LLaMA-7B") is load_shape("llama-7b")


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean .*llama-2-7b"):
        load_shape("lama-2-7b")


def _config(folder: Path, **keys: object) -> str:
    (folder / "config.json").write_text(json.dumps(keys))
    return str(folder)


LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def _same(a: ModelShape, b: ModelShape) -> bool:
    fields = [f for f in ModelShape.__dataclass_fields__ if f not in ("name", "source")]
    return all(getattr(a, f) == getattr(b, f) for f in fields)


def test_config_of_llama_3(tmp_path: Path) -> None:
    path = _config(tmp_path, **LLAMA)
    shape = load_shape(path)
    assert _same(shape, load_shape("llama-3-8b"))
    assert shape.name == path
    assert _same(load_shape(path + "/config.json"), shape)


def test_config_of_chatglm2_has_its_own_key_names(tmp_path: Path) -> None:
    path = _config(
        tmp_path,
        model_type="chatglm",
        hidden_size=4096,
        ffn_hidden_size=13696,
        num_layers=28,
        num_attention_heads=32,
        multi_query_attention=True,
        multi_query_group_num=2,
        kv_channels=128,
        padded_vocab_size=65024,
        add_qkv_bias=True,
    )
    assert _same(load_shape(path), load_shape("chatglm2-6b"))


def test_config_of_gemma_qwen_and_gpt2(tmp_path: Path) -> None:
    for name in ("g", "q", "2", "n"):
        (tmp_path / name).mkdir()
    gemma = _config(
        tmp_path / "g",
        model_type="gemma",
        hidden_size=2048,
        intermediate_size=16384,
        num_hidden_layers=18,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=256,
        vocab_size=256000,
    )
    assert _same(load_shape(gemma), load_shape("gemma-2b"))
    qwen = {**LLAMA, "model_type": "qwen2"}
    assert load_shape(_config(tmp_path / "q", **qwen)).qkv_bias
    gpt2 = load_shape(_config(tmp_path / "2", model_type="gpt2", n_embd=768, n_layer=12, n_head=12, vocab_size=50257))
    assert not gpt2.gated and gpt2.tied_embeddings and gpt2.ffn == 3072
    assert [linear.name for linear in gpt2.linears] == ["q", "k", "v", "o", "up", "down"]
    assert _same(load_shape(_config(tmp_path / "n", text_config=LLAMA)), load_shape("llama-3-8b"))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"num_attention_heads": 3, "num_key_value_heads": 1}, "hidden_size"),
        ({"moe_num_experts": 64}, "moe_num_experts"),
        ({"moe_num_experts": [64, 64]}, "moe_num_experts"),
        ({"num_moe_experts": 8.0}, "num_moe_experts"),
        ({"n_routed_experts": 64, "n_shared_experts": 2}, "n_shared_experts"),
        ({"model_type": "mamba"}, "model_type"),
        ({"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 5}, "num_kv_heads"),
        ({"model_type": "falcon", "multi_query": 1}, "multi_query"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
    ],
)
def test_a_bad_config_names_the_key(tmp_path: Path, change: dict[str, object], key: str) -> None:
    path = _config(tmp_path, **{**LLAMA, **change})
    with pytest.raises(InvalidInputError) as error:
        load_shape(path)
    assert key in [problem.column for problem in error.value.problems]


@pytest.mark.parametrize(
    ("change", "kv_heads", "ffn", "gated", "tied"),
    [
        ({"model_type": "falcon", "multi_query": True, "num_kv_heads": 32}, 1, 14336, False, True),
        ({"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 8}, 8, 14336, False, True),
        ({"model_type": "RefinedWeb", "n_head_kv": 8}, 8, 14336, False, True),
        ({"model_type": "RefinedWebModel", "multi_query": True}, 1, 14336, False, True),
        ({"model_type": "gpt_bigcode", "multi_query": True}, 1, 14336, False, True),
        ({"model_type": "qwen"}, 8, 7168, True, False),
        ({"model_type": "nemotron", "hidden_act": "relu2"}, 8, 14336, False, False),
        ({"model_type": "cohere"}, 8, 14336, True, True),
        ({"model_type": "starcoder2"}, 8, 14336, False, True),
        (
            {"num_experts": 1, "num_experts_per_tok": 2, "num_local_experts": None, "quantization_config": None},
            8,
            14336,
            True,
            False,
        ),
    ],
)
def test_the_kind_of_model_says_what_the_numbers_mean(
    tmp_path: Path, change: dict[str, object], kv_heads: int, ffn: int, gated: bool, tied: bool
) -> None:
    shape = load_shape(_config(tmp_path, **{**LLAMA, **change}))
    assert (shape.kv_heads, shape.ffn, shape.gated, shape.tied_embeddings) == (kv_heads, ffn, gated, tied)


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a": NaN}', b"null", b"[" * 100_000])
def test_a_config_that_is_not_json_is_invalid_input(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(InvalidInputError, match=r"config\.json"):
        load_shape(str(tmp_path))


def test_a_missing_config_is_invalid_input(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no such file"):
        load_shape(str(tmp_path / "nothing.json"))


@given(
    st.dictionaries(
        st.sampled_from([*LLAMA, "head_dim", "text_config"]), st.none() | st.integers() | st.text() | st.floats()
    )
)
def test_any_config_gives_a_shape_or_a_clear_error(change: dict[str, object]) -> None:
    from loramux_profiles import hf_config

    original = hf_config.read_json
    hf_config.read_json = lambda path: {**LLAMA, **change}
    try:
        shape = hf_config.shape_from_config("x.json")
        assert shape.params > 0
    except InvalidInputError as error:
        assert error.problems
    finally:
        hf_config.read_json = original


def test_data_is_found_inside_an_installed_package(tmp_path: Path) -> None:
    import loramux_traces

    profiles, traces = Path(datafiles.__file__).parent, Path(str(loramux_traces.__file__)).parent
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(profiles, tmp_path / "loramux_profiles", ignore=ignore)
    shutil.copytree(traces, tmp_path / "loramux_traces", ignore=ignore)
    shutil.copytree(datafiles.data_dir(), tmp_path / "loramux_profiles" / "data", dirs_exist_ok=True)
    code = (
        "from loramux_profiles import datafiles, shape_catalog as c; print(datafiles.data_dir(), len(c.shape_names()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == [
        str(tmp_path.resolve() / "loramux_profiles" / "data"),
        str(len(shape_names())),
    ]

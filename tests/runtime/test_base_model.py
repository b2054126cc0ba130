"""Loading a base: what is wrong with a folder is said, and nothing of it runs.

Weights are never made up.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from loramux_runtime.fused.adapters.lora.config import LoraConfig
from loramux_runtime.fused.base_config import hf_config
from loramux_runtime.fused.base_model import build_base, load_base, outline, shape_config
from loramux_runtime.fused.blame import blame
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import MicroBatch, Part
from loramux_runtime.jobs.bases import open_base
from loramux_runtime.jobs.jobs_file import BaseConfig
from loramux_traces.errors import Interrupted, InvalidInputError, StateError, UsageError

from .matrix import LLAMA, build

ORACLE = Path(__file__).parents[1] / "oracle" / "base"
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return Path(shutil.copytree(ORACLE, tmp_path / "base"))


def _weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def _config(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        document = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(document | changes))

    return apply


def _truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def _rope(kind: str, **parameters: Any) -> Callable[[Path], None]:
    return _config(rope_parameters={"rope_type": kind, "rope_theta": 1e4, **parameters}, rope_scaling=None)


def _old_rope(scaling: Any, **changes: Any) -> Callable[[Path], None]:
    return _config(rope_parameters=None, rope_scaling=scaling, **changes)


LONG: dict[str, Any] = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def _shards(folder: Path) -> None:
    """The same weights in two files and an index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    table = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i}.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        table |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def _index(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        _shards(folder)
        index = folder / "model.safetensors.index.json"
        document = json.loads(index.read_text())
        change(document)
        index.write_text(json.dumps(document))

    return apply


def _fifo(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return apply


def _grow(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def _lying_header(folder: Path) -> None:
    """A header that says that the first tensor is larger than the file."""
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")
    header[name] |= {"shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    # weights
    "missing": (_weights(lambda w: w.pop(UP)), f"column {UP}: .*{UP} is missing"),
    "surplus": (_weights(lambda w: w.update({"model.layers.0.mlp.up_proj.bias": torch.ones(64)})), "bias is surplus"),
    "shape": (_weights(lambda w: w.update({UP: torch.zeros(64, 31)})), rf"{UP} has shape \(64, 31\)"),
    "small": (_weights(lambda w: w.update({"lm_head.weight": torch.zeros(3, 3)})), "lm_head.weight has shape"),
    "vocabulary": (_config(vocab_size=300), r"column vocab_size: vocab_size and hidden_size are \(300, 32\)"),
    "layers": (_config(num_hidden_layers=3), "column num_hidden_layers: '3'; must be the number of layers .* 2"),
    "ffn": (_config(intermediate_size=1 << 20), "config.json: declares .* parameters"),
    "nan": (_weights(lambda w: w[UP].fill_(float("nan"))), f"column {UP}: holds NaN"),
    "infinite": (_weights(lambda w: w[UP].fill_(float("-inf"))), f"column {UP}: holds NaN"),
    "int8": (_weights(lambda w: w.update({UP: w[UP].to(torch.int8)})), f"column {UP}: has dtype I8, .*quantised"),
    "fp8": (_weights(lambda w: w.update({UP: w[UP].to(torch.float8_e4m3fn)})), f"column {UP}: has dtype F8_E4M3"),
    "truncated": (_truncate, "model.safetensors: .*(header|incomplete)"),
    "header": (_lying_header, "model.safetensors: "),
    "long-header": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "its header is cut off or too large"),
    "empty": (_text("model.safetensors", ""), "its header is cut off"),
    "lfs": (_text("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid x\n"), "git lfs pull"),
    "weights-fifo": (_fifo("model.safetensors"), "must be a regular file"),
    "dangling": (lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").symlink_to("x")), "no such file"),
    "pickled": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "no .safetensors"),
    "no-index": (lambda f: (_shards(f), (f / "model.safetensors.index.json").unlink()), "without model.safetensors.index"),
    "shard": (lambda f: (_shards(f), (f / "model-1.safetensors").unlink()), "model-1.safetensors: weights cannot be read"),
    "index-outside": (_index(lambda d: d["weight_map"].update({UP: "../x.safetensors"})), f"weight_map.{UP}: .* in this"),
    "index-absolute": (_index(lambda d: d["weight_map"].update({UP: "/etc/passwd"})), f"weight_map.{UP}"),
    "index-number": (_index(lambda d: d["weight_map"].update({UP: 3})), f"weight_map.{UP}"),
    "index-lies": (_index(lambda d: d["weight_map"].update({"x": "model-0.safetensors"})), "column x: the index says"),
    "index-list": (_index(lambda d: d.update(weight_map=[])), "column weight_map"),
    "index-json": (lambda f: (_shards(f), _text("model.safetensors.index.json", "{")(f)), "index.json:1: not JSON"),
    # the file
    "no-config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "no-folder": (shutil.rmtree, "no such folder"),
    "adapter": (_text("adapter_config.json", "{}"), "adapter_config.json: .* must hold no adapter"),
    "only-adapter": (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "it holds an adapter"),
    "json": (_text("config.json", "{"), "config.json:1: not JSON"),
    "list": (_text("config.json", "[]"), "must hold a JSON object"),
    "twice": (_text("config.json", '{"vocab_size": 1, "vocab_size": 2}'), "'vocab_size' is given twice"),
    "deep": (_text("config.json", "[" * 100_000), "nested too deeply"),
    "nested": (_text("config.json", '{"a":' + "[" * 100 + "]" * 100 + "}"), "nested too deeply"),
    "digits": (_text("config.json", '{"vocab_size": 1' + "0" * 5000 + "}"), "vocab_size|integer"),
    "utf-16": (lambda f: (f / "config.json").write_bytes("{}".encode("utf-16")), "this is UTF-16"),
    "config-fifo": (_fifo("config.json"), "must be a regular file"),
    "gigabyte": (_grow("config.json", 1 << 30), "may have at most 256 MiB, this file has 1 GiB"),
    # sizes and numbers
    "type": (_config(hidden_size="x"), "column hidden_size: 'x'; must be a whole number"),
    "negative": (_config(hidden_size=-4), "column hidden_size"),
    "float": (_config(num_attention_heads=4.0), "column num_attention_heads"),
    "bool": (_config(num_attention_heads=True), "column num_attention_heads"),
    "null": (_config(hidden_size=None), "column hidden_size"),
    "million-layers": (_config(num_hidden_layers=10**7), "column num_hidden_layers: .* from 1 to 1024"),
    "wide": (_config(hidden_size=10**9), "column hidden_size"),
    "positions": (_config(max_position_embeddings=0), "column max_position_embeddings"),
    "heads": (_config(num_attention_heads=3), "config.json: .*heads"),
    "pairs": (_config(num_key_value_heads=3), "column num_key_value_heads: '3'; must divide the 4"),
    "no-pairs": (_config(num_key_value_heads=0), "column num_key_value_heads"),
    "eps-nan": (lambda f: _text("config.json", (f / "config.json").read_text().replace("1e-06", "NaN"))(f), "NaN is not"),
    "eps": (_config(rms_norm_eps=-1.0), "column rms_norm_eps"),
    "eps-digits": (_config(rms_norm_eps=10**400), "column rms_norm_eps: 'an integer of"),
    "layers-digits": (_config(num_hidden_layers=10**400), "column num_hidden_layers: 'an integer of"),
    "eps-text": (_config(rms_norm_eps="1e-6"), "column rms_norm_eps"),
    "flag": (_config(attention_bias="yes"), "column attention_bias: 'yes'; must be true or false"),
    "dtype": (_config(dtype="float7"), "column dtype: 'float7'; must be one of auto, bfloat16"),
    "extra-type": (_config(pad_token_id="x"), "config.json: .*pad_token_id"),
    # what would make another model of it
    "code": (_config(model_type="x", auto_map={"AutoConfig": "x.C", "AutoModelForCausalLM": "x.M"}), "custom code"),
    "bitsandbytes": (_config(quantization_config={"quant_method": "bitsandbytes"}), "quantization_config: 'bitsandbytes'"),
    "gptq": (_config(quantization_config={"quant_method": "gptq", "bits": 4}), "column quantization_config: 'gptq'"),
    "awq": (_config(quantization_config={"quant_method": "awq"}), "column quantization_config: 'awq'"),
    "fp8-config": (_config(quantization_config={"quant_method": "fp8"}), "column quantization_config: 'fp8'"),
    "compressed": (_config(compression_config={"format": "int-quantized"}), "column compression_config"),
    "quantised-oddly": (_config(quantization_config=[1]), "column quantization_config"),
    "mlx": (_config(quantization={"bits": 4, "group_size": 64}), "column quantization"),
    "family": (_config(model_type="mixtral"), "column model_type: 'mixtral'; model family 'mixtral' is not supported"),
    "no-family": (_config(model_type=None), "column model_type"),
    "family-type": (_config(model_type=["llama"]), "column model_type"),
    "activation": (_config(hidden_act="relu"), "column hidden_act: 'relu'; activation 'relu'"),
    "activation-type": (_config(hidden_act=["silu"]), "hidden_act"),
    "dropout": (_config(attention_dropout=0.1), "column attention_dropout: '0.1'; the base model itself has dropout"),
    "softcapping": (_config(final_logit_softcapping=30.0), "column final_logit_softcapping"),
    "scalar": (_config(query_pre_attn_scalar=256), "column query_pre_attn_scalar"),
    "experts": (_config(num_local_experts=8), "column num_local_experts"),
    "both-ways": (_config(use_bidirectional_attention=True), "column use_bidirectional_attention"),
    "layer-types": (_config(layer_types=["sliding_attention"] * 2), "column layer_types: 'sliding_attention'"),
    "layer-type-count": (_config(model_type="qwen2", layer_types=["full_attention"]), "column layer_types|layer_types"),
    "layer-type": (_config(model_type="qwen2", layer_types=["chunked_attention"] * 2), "column layer_types"),
    "window": (_config(model_type="mistral", sliding_window=0), "column sliding_window"),
    # rotary positions
    "rope-type": (_rope("axial"), "column rope_parameters.rope_type: 'axial'; must be one of default, linear"),
    "rope-missing": (_rope("linear"), "column rope_parameters.factor: is missing: linear"),
    "rope-factor": (_rope("linear", factor=-1.0), "column rope_parameters.factor"),
    "rope-theta": (_rope("default", rope_theta=0), "column rope_parameters.rope_theta"),
    "rope-part": (_rope("default", partial_rotary_factor=0.5), "turns 4 of the 8 numbers of a head"),
    "rope-part-size": (_rope("default", partial_rotary_factor=1.5), "partial_rotary_factor"),
    "rope-lists": (_rope("longrope", factor=2.0, short_factor=[1.0], long_factor=[1.0, 2.0]), "rope_parameters"),
    "rope-by-layer": (_rope("default", full_attention={"rope_type": "default"}), "one set for all layers"),
    "rope-text": (_config(rope_parameters="linear", rope_scaling=None), "column rope_parameters: .* must be an object"),
    "rope-old-text": (_old_rope("linear"), "column rope_scaling: 'linear'; must be an object"),
    "rope-no-type": (_old_rope({"factor": 2.0}), "column rope_scaling.rope_type: is missing beside factor: must be one"),
    "rope-alpha": (_old_rope({"rope_type": "dynamic", "alpha": 1000, "factor": 1.0}), "rope_scaling.alpha: '1000'; is not"),
    "rope-sections": (_rope("default", mrope_section=[2, 2]), "column rope_parameters.mrope_section"),
    "rope-mscale": (_old_rope({**LONG, "short_mscale": 1.1}), "column rope_scaling.short_mscale: '1.1'; is not"),
    "rope-two-types": (_old_rope({"rope_type": "linear", "type": "yarn", "factor": 2.0}), "rope_scaling.rope_type: 'linear'"),
    "rope-null-type": (_old_rope({"rope_type": None, "type": "linear", "factor": 2.0}), "column rope_scaling.rope_type"),
    "rope-type-null": (_old_rope({"rope_type": None, "factor": 2.0}), "column rope_scaling.rope_type: .*must be one of"),
    "rope-type-list": (_old_rope({"type": ["linear"], "factor": 2.0}), "column rope_scaling.type: .*must be one of"),
    "rope-two-thetas": (_rope("default", rope_theta=9), "rope_parameters.rope_theta: .*says something else than rope_theta"),
    "rope-twice": (
        _config(rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters={"rope_type": "default"}),
        "rope_parameters: .*else than rope_scaling"),
    "rope-theta-null": (_old_rope(None, rope_theta=None), "column rope_theta: .*must be a finite number above 0"),
    "rope-theta-list": (_old_rope(None, rope_theta=[10000.0]), "column rope_theta: .*must be a finite number above 0"),
    "rope-theta-inside": (_rope("default", rope_theta=None), "column rope_parameters.rope_theta: .*must be a finite number"),
    "rope-factor-list": (_rope("linear", factor=[2.0]), "column rope_parameters.factor: .*must be a finite number above 0"),
    "rope-factors": (_old_rope({**LONG, "long_factor": 2.0}), "rope_scaling.long_factor: '2'; must be a list of finite"),
    "rope-truncate": (_rope("yarn", factor=2.0, truncate="no"), "rope_parameters.truncate: 'no'; must be true or false"),
    "rope-length": (
        _old_rope({"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8}, original_max_position_embeddings=9),
        "rope_scaling.original_max_position_embeddings: '8'",
    ),
    "rope-su": (_config(model_type="phi3", rope_scaling={**LONG, "type": "su"}), "scaling.type: 'su'; must be one of .*longrope"),
    "rope-phi3": (_config(model_type="phi3", rope_scaling={**LONG, "type": "yarn"}), "scaling.type: 'yarn'; .* default, longrope"),
    # fields of other families
    "llama-window": (_config(sliding_window=4), "column sliding_window: '4'; is not computed for llama"),
    "llama-windows": (_config(use_sliding_window=True), "column use_sliding_window: .*is not computed for llama"),
    "mistral-window": (
        _config(model_type="mistral", use_sliding_window=False, sliding_window=4),
        "column sliding_window: '4'; must be null beside use_sliding_window: false, which transformers does not read",
    ),
    "mistral-bias": (_config(model_type="mistral", attention_bias=True), "attention_bias: .*not computed for mistral"),
    "qwen2-bias": (_config(model_type="qwen2", mlp_bias=True), "column mlp_bias: .*is not computed for qwen2"),
    "padding": (_config(pad_token_id=1000), "column pad_token_id: '1000'; must be a token below the vocab_size of"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_folder_is_refused_by_file_and_field(fault: str, folder: Path) -> None:
    change, words = BAD[fault]
    change(folder)
    with pytest.raises(InvalidInputError, match=words) as caught:
        load_base(folder, dtype="fp32")
    assert str(caught.value).startswith(str(folder)) and len(str(caught.value)) < 600
    if not any(part in str(caught.value) for part in ("is missing", "surplus", "has shape (64", "NaN or")):
        with pytest.raises(InvalidInputError):  # all else is known without loading
            outline(folder)


@pytest.mark.parametrize(
    "changes", [{"model_type": "mixtral"}, {"hidden_act": "relu"}, {"quantization_config": {"quant_method": "gptq"}}]
)
def test_an_unsupported_model_is_refused_before_its_weights_are_read(changes: dict[str, Any], folder: Path) -> None:
    _config(**changes)(folder)
    _truncate(folder)
    with pytest.raises(InvalidInputError, match="not supported"):
        load_base(folder, dtype="fp32")


def test_a_configuration_in_a_jobs_file_is_held_to_the_same() -> None:
    for changes, words in (
        ({"num_hidden_layers": 10**7}, "base.config: column num_hidden_layers"),
        ({"model_type": "bert"}, "base.config: column model_type"),
        ({"hidden_act": "relu"}, "base.config: column hidden_act"),
        ({"num_key_value_heads": 3}, "base.config: column num_key_value_heads"),
        ({"hiden_size": 24}, "base.config: column hiden_size: .* did you mean hidden_size"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            open_base(BaseConfig(config={"model_type": "llama", **LLAMA, **changes}))
    with pytest.raises(UsageError, match="this machine has"):
        open_base(BaseConfig(config={"model_type": "llama", "num_hidden_layers": 1000, "intermediate_size": 1 << 20}))


class _Panic(BaseException):
    """As the tokenizers library raises it."""


@pytest.mark.parametrize("error", [ImportError, AttributeError, RuntimeError, RecursionError, _Panic, IndexError])
def test_whatever_a_loader_raises_is_the_folders_fault(
    error: type[BaseException], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error("some\nreason")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(InvalidInputError, match=r"base: some reason"):
        load_base(folder)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, Interrupted, StateError])
def test_what_ends_the_program_is_not_the_folders_fault(error: type[BaseException]) -> None:
    with pytest.raises(error), blame("x"):
        raise error
    with pytest.raises(RuntimeError, match="allocate"), blame("x"):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")


def _plain(folder: Path) -> torch.Tensor:
    auto: Any = transformers.AutoModelForCausalLM
    tokens = torch.arange(3, 30)[None]
    with torch.no_grad():
        logits: torch.Tensor = auto.from_pretrained(folder, dtype=torch.float32).eval()(tokens).logits[0]
    return logits


def _ours(folder: Path) -> torch.Tensor:
    model = FusedModel(load_base(folder, dtype="fp32"))
    adapter = model.new_adapter("a", "lora", LoraConfig(rank=2))
    row = np.arange(3, 30)
    return model.logits([Part(adapter=adapter, batch=MicroBatch(tokens=(row,), labels=(row,), samples=(0,)))])[0][0]


def _links(folder: Path) -> None:
    """As the cache of the Hub has them: every file is a link to a blob."""
    (folder / "blobs").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(folder / "blobs" / name)
        (folder / name).symlink_to(folder / "blobs" / name)


GOOD: dict[str, Callable[[Path], Any]] = {
    "as it is": lambda f: None,
    "shards": _shards,
    "links": _links,
    "fp16": _weights(lambda w: w.update({name: value.half() for name, value in w.items()})),
    "mixed": _weights(lambda w: w.update({UP: w[UP].bfloat16()})),
    "torch_dtype": _config(dtype=None, torch_dtype="float16"),
    "auto": _config(dtype=None, torch_dtype="auto"),
    "dtype": _config(dtype="bfloat16", torch_dtype=None),
    "generation": _text("generation_config.json", '{"temperature": 0.6, "do_sample": false}'),
    "bad generation": _text("generation_config.json", "{"),
    "code that is not needed": _config(auto_map={"AutoConfig": "x.C"}),
    "swish": _config(hidden_act="swish"),
    "old inv_freq": _weights(lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})),
    "old rope": _config(rope_parameters=None, rope_theta=5e5, rope_scaling={"type": "dynamic", "factor": 2.0}),
    "rope of old and new": _config(rope_theta=1e4, rope_scaling={"rope_type": "default", "rope_theta": 1e4}),
    "both types": _old_rope({"type": "linear", "rope_type": "linear", "factor": 2.0, "beta": None}),
    "yarn": _old_rope({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "finetuned": True}),
    "yarn's scales": _old_rope({"type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0}),
    "llama 3": _old_rope(
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        },
        rope_theta=5e5,
    ),
    "factor of one": _old_rope({"rope_type": "default", "factor": 1.0}),
    "no window": _config(use_sliding_window=False, sliding_window=4, max_window_layers=1, num_experts=None),
    "other tasks": _config(num_labels=3, output_hidden_states=True, is_encoder_decoder=True),
    "tensor parallel": _config(pretraining_tp=2, use_cache=False),
}


SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 300,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-3.1": {"model_type": "llama", "rope_theta": 500000.0, "max_position_embeddings": 131072, "mlp_bias": False,
                  "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                   "original_max_position_embeddings": 8192, "rope_type": "llama3"}},
    "Qwen2.5": {"model_type": "qwen2", "rope_theta": 1000000.0, "sliding_window": 131072, "use_sliding_window": False,
                "max_window_layers": 28, "max_position_embeddings": 32768},
    "Qwen2.5 with YaRN": {"model_type": "qwen2", "rope_theta": 1000000.0, "max_position_embeddings": 131072,
                          "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}},
    "Qwen3": {"model_type": "qwen3", "head_dim": 8, "rope_theta": 1000000, "rope_scaling": None, "attention_bias": False,
              "sliding_window": None, "use_sliding_window": False, "max_window_layers": 28},
    "Mistral": {"model_type": "mistral", "rope_theta": 10000.0, "sliding_window": 4096, "num_key_value_heads": 2},
    "Mistral without a window": {"model_type": "mistral", "sliding_window": None, "use_sliding_window": False},
    "Phi-3 128k": {"model_type": "phi3", "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
                   "rope_theta": 10000.0, "sliding_window": 262144, "attention_bias": False, "pad_token_id": 0,
                   "rope_scaling": LONG},
    "Gemma": {"model_type": "gemma", "head_dim": 8, "rope_scaling": None, "rope_theta": 10000.0,
              "hidden_act": "gelu_pytorch_tanh", "attention_bias": False},
    "GLM-4": {"model_type": "glm4", "head_dim": 8, "partial_rotary_factor": 0.5, "rope_theta": 10000.0,
              "rope_scaling": None, "attention_bias": False, "num_key_value_heads": 2, "pad_token_id": 2},
}  # fmt: skip
"""Rotary positions, windows and biases as published configurations have them; sizes are small."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_taken_and_left_as_they_are(name: str) -> None:
    values = {**SIZES, **PUBLISHED[name]}
    before = copy.deepcopy(values)
    config = hf_config(values, "config.json")
    assert values == before
    again = config.to_dict()
    assert hf_config(again, "config.json").rope_parameters == config.rope_parameters


@pytest.mark.parametrize("form", GOOD)
def test_every_form_of_a_checkpoint_is_the_model_that_transformers_loads(form: str, folder: Path) -> None:
    GOOD[form](folder)
    torch.testing.assert_close(_ours(folder), _plain(folder), rtol=0, atol=1e-5)


def test_fields_that_nobody_reads_are_said(folder: Path) -> None:
    # transformers would make a name for each label
    _config(num_labels=10**9, is_llama_config=True, next_years_field={"a": 1}, nothing=None)(folder)
    (note,) = load_base(folder, dtype="fp32").notes
    assert note == "fields of config.json not used: is_llama_config, next_years_field"


def test_a_tied_head_may_be_stored_too(tmp_path: Path) -> None:
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    build("qwen2", tie_word_embeddings=True).hf.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in weights
    other = torch.arange(weights["model.embed_tokens.weight"].numel()).view(61, 24) / 1e3
    for head in (weights["model.embed_tokens.weight"].clone(), other):
        save_file({**weights, "lm_head.weight": head}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        torch.testing.assert_close(_ours(tmp_path), _plain(tmp_path), rtol=0, atol=1e-5)
    head = weights.pop("model.embed_tokens.weight")
    save_file({**weights, "lm_head.weight": head}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(_ours(tmp_path), _plain(tmp_path), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "fields", "act", "notes"),
    [
        ("gemma", {"hidden_act": "gelu", "hidden_activation": None}, "gelu_pytorch_tanh", 0),
        ("gemma", {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}, "gelu_pytorch_tanh", 0),
        ("gemma", {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "silu"}, "gelu_pytorch_tanh", 1),
        ("gemma", {"hidden_act": "silu", "hidden_activation": "gelu"}, "silu", 1),
        ("llama", {"hidden_act": "gelu"}, "gelu", 0),
        ("glm", {"hidden_act": "gelu_new"}, "gelu_new", 0),
        ("phi3", {"hidden_act": "swish"}, "silu", 0),
    ],
)
def test_the_activation_is_that_of_the_loaded_module(
    family: str, fields: dict[str, Any], act: str, notes: int, tmp_path: Path
) -> None:
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    build(family).hf.save_pretrained(tmp_path)
    _config(**fields)(tmp_path)
    base = load_base(tmp_path, dtype="fp32")
    assert (base.act, len(base.notes)) == (act, notes)
    torch.testing.assert_close(_ours(tmp_path), _plain(tmp_path), rtol=0, atol=1e-5)


def test_a_base_is_frozen_and_known(folder: Path) -> None:
    found = load_base(folder, dtype="fp32")
    assert (found.vocab, found.sites.layers, found.sites.hidden, found.sites.ffn) == (128, 2, 32, 64)
    assert not any(parameter.requires_grad for parameter in found.hf.parameters())
    assert found.weight_bytes == 4 * sum(value.numel() for value in load_file(folder / "model.safetensors").values())
    assert load_base(folder, dtype="bf16").weight(1, "up_proj").dtype == torch.bfloat16


def test_random_weights_depend_on_the_seed_alone() -> None:
    config = build("llama").hf.config
    state = torch.random.get_rng_state()
    one, other, third = (build_base(config, dtype="fp32", seed=seed).weight(0, "q_proj") for seed in (1, 1, 2))
    assert torch.equal(one, other) and not torch.equal(one, third)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_named_shape() -> None:
    config = shape_config("llama-7b", num_hidden_layers=1)
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (4096, 11008, 1)

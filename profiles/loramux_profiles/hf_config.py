"""This module reads the shape of a model from its Hugging Face config.json.

It knows the key names of the architectures in use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from loramux_profiles.datafiles import problem, read_json
from loramux_profiles.shapes import ModelShape
from loramux_traces.errors import InvalidInputError, Problem

_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "num_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head"),
    "vocab": ("padded_vocab_size", "vocab_size"),
}
_FFN: Final = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim")
_TIED: Final = ("gemma", "gpt2", "opt", "bloom", "falcon")
"""Beginnings of model_type for which embeddings are tied where the file does not say so."""
_UNGATED: Final = ("gpt", "opt", "phi", "bloom", "falcon", "starcoder")
_PHI_GATED: Final = ("phi3", "phi4", "gpt_oss")
_MAX: Final = 1 << 24


class _Reader:
    """Reads positive integers by alternative names and collects what is wrong."""

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self.path, self.data = path, data
        self.problems: list[Problem] = []

    def whole(self, *keys: str, default: int | None = None) -> int:
        for key in keys:
            value = self.data.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX:
                self.problems.append(problem(self.path, key, value, f"must be a whole number from 1 to {_MAX}"))
                return 1
            return value
        if default is None:
            self.problems.append(
                problem(self.path, keys[0], None, f"is missing (also looked for {', '.join(keys[1:])})")
            )
            return 1
        return default

    def flag(self, *keys: str, default: bool) -> bool:
        for key in keys:
            value = self.data.get(key)
            if value is None:
                continue
            if not isinstance(value, bool):
                self.problems.append(problem(self.path, key, value, "must be true or false"))
            return bool(value)
        return default


def shape_from_config(path: Path | str, name: str | None = None) -> ModelShape:
    """Return the shape of a local Hugging Face config.json, or of the folder that holds it.

    The shape is called `name`, or else as the path. The reader knows the key names of Llama-like
    models, ChatGLM (`num_layers`, `ffn_hidden_size`, `multi_query_group_num`, `kv_channels`,
    `padded_vocab_size`) and GPT-2, and a nested `text_config`. Raises InvalidInputError naming
    every bad key; a model that is itself a mixture of experts is refused.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    return shape_from_dict(read_json(file), name or str(path), file)


def shape_from_dict(data: dict[str, Any], name: str, file: Path | str = "") -> ModelShape:
    """Return the shape of a configuration that is at hand (`PretrainedConfig.to_dict()`).

    Problems name `file`.
    """
    file = Path(file or name)
    nested = data.get("text_config")
    if isinstance(nested, dict):
        data = {**data, **nested}
    reader = _Reader(file, data)
    kind = str(data.get("model_type", ""))
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if isinstance(data.get(key), int) and data[key] > 1:
            reader.problems.append(
                problem(file, key, data[key], "a base model with experts of its own is not supported")
            )
    hidden = reader.whole(*_KEYS["hidden"])
    layers = reader.whole(*_KEYS["layers"])
    heads = reader.whole(*_KEYS["heads"])
    vocab = reader.whole(*_KEYS["vocab"])
    gated = not kind.startswith(_UNGATED) or kind.startswith(_PHI_GATED)
    ffn = reader.whole(*_FFN, default=None if gated else 4 * hidden)
    if data.get("multi_query_attention") is True:
        kv_heads = reader.whole("multi_query_group_num", default=1)
    else:
        kv_heads = reader.whole("num_key_value_heads", default=heads)
    if heads % kv_heads:
        reader.problems.append(problem(file, "num_key_value_heads", kv_heads, f"must divide the {heads} heads"))
    head_dim = reader.whole("head_dim", "kv_channels", default=max(1, hidden // heads))
    if "head_dim" not in data and "kv_channels" not in data and hidden % heads:
        reader.problems.append(problem(file, "hidden_size", hidden, f"must be a multiple of the {heads} heads"))
    tied = reader.flag("tie_word_embeddings", default=kind.startswith(_TIED))
    qkv_bias = reader.flag("attention_bias", "add_qkv_bias", "qkv_bias", default=kind.startswith("qwen2"))
    if reader.problems:
        raise InvalidInputError(reader.problems)
    return ModelShape(
        name=name,
        hidden=hidden,
        ffn=ffn,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=vocab,
        tied_embeddings=tied,
        qkv_bias=qkv_bias,
        gated=gated,
        qk_norm=kind.startswith("qwen3"),
        post_norms=kind == "glm4",
        fused_qkv=kind == "phi3",
        source=f"{file} ({kind or 'no model_type'})",
    )

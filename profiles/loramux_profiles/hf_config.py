"""This module reads the shape of a model from its Hugging Face config.json.

It knows the key names of the architectures in use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from loramux_profiles.datafiles import problem, read_json
from loramux_profiles.model_kinds import (
    FALCON,
    HEAD_DIM,
    KV_HEADS,
    POST_NORMS,
    QK_NORM,
    TIED,
    UNGATED,
    kind_faults,
)
from loramux_profiles.shapes import ModelShape
from loramux_traces.errors import InvalidInputError, Problem

_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "num_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "vocab": ("padded_vocab_size", "vocab_size"),
}
_FFN: Final = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim")
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
    `padded_vocab_size`), GPT-2 and Falcon, and a nested `text_config`. Raises InvalidInputError
    naming every bad key; a mixture of experts, a quantised model, and one
    of a kind that is not known are refused.
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
    reader.problems += [problem(file, *fault) for fault in kind_faults(data, kind)]
    hidden = reader.whole(*_KEYS["hidden"])
    layers = reader.whole(*_KEYS["layers"])
    heads = reader.whole(*_KEYS["heads"])
    vocab = reader.whole(*_KEYS["vocab"])
    gated = kind not in UNGATED
    ffn = reader.whole(*_FFN, default=None if gated else 4 * hidden)
    if kind == "qwen":  # its first version counts gate and up together
        ffn = max(1, ffn // 2)
    key, kv_heads = _kv_heads(reader, kind, heads)
    if heads % kv_heads:
        reader.problems.append(problem(file, key, kv_heads, f"must divide the {heads} heads"))
    own_dim = None if "head_dim" in data else HEAD_DIM.get(kind)
    head_dim = reader.whole("head_dim", "kv_channels", default=own_dim or max(1, hidden // heads))
    if own_dim is None and "head_dim" not in data and "kv_channels" not in data and hidden % heads:
        reader.problems.append(problem(file, "hidden_size", hidden, f"must be a multiple of the {heads} heads"))
    tied = reader.flag("tie_word_embeddings", default=kind in TIED)
    qkv_bias = reader.flag("attention_bias", "add_qkv_bias", "qkv_bias", default=kind in ("qwen", "qwen2"))
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
        qk_norm=kind in QK_NORM,
        post_norms=kind in POST_NORMS,
        fused_qkv=kind == "phi3",
        source=f"{file} ({kind or 'no model_type, read as a llama'})",
    )


def _kv_heads(reader: _Reader, kind: str, heads: int) -> tuple[str, int]:
    """Return (key, heads of keys and values), by the rule of the kind."""
    if reader.data.get("multi_query_attention") is True:
        return "multi_query_group_num", reader.whole("multi_query_group_num", default=1)
    if kind in FALCON and reader.flag("new_decoder_architecture", default=kind == "RefinedWeb"):
        return "num_kv_heads", reader.whole("num_kv_heads", "n_head_kv", default=heads)
    if kind in FALCON or kind == "gpt_bigcode":
        return "multi_query", 1 if reader.flag("multi_query", default=True) else heads
    absent = heads if "num_key_value_heads" in reader.data else KV_HEADS.get(kind, heads)
    return "num_key_value_heads", reader.whole("num_key_value_heads", default=absent)

"""A base's configuration is read within bounds and checked before anything is built from it.

Every value that would change what the model computes is either computed as transformers does, or
refused with its field. What is checked here costs no memory: a configuration of ten million layers
is refused before the first one is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeGuard

import torch

from loramux_profiles.datafiles import read_json
from loramux_runtime.fused.blame import blame
from loramux_runtime.fused.kernels.gated import ACTIVATIONS
from loramux_runtime.fused.rope import rope_faults
from loramux_runtime.fused.rope_fields import is_number, rope_field_faults
from loramux_traces.errors import InvalidInputError, printable
from loramux_traces.problems import Problems

FAMILIES: Final = ("llama", "qwen2", "qwen3", "mistral", "gemma", "glm", "glm4", "phi3")
MAX_CONFIG_BYTES: Final = 4 << 20
MAX_LAYERS: Final = 1024
MAX_WIDTH: Final = 1 << 20
"""Largest hidden size, FFN size, number of heads or size of a head."""
_SHOWN: Final = 8
_KNOWN: Final = frozenset(
    (
        *("model_type", "auto_map", "architectures", "transformers_version", "name_or_path", "tokenizer_class"),
        *("torch_dtype", "rope_theta", "rope_scaling", "partial_rotary_factor", "hidden_activation", "layer_types"),
        *("use_cache", "pretraining_tp", "mlp_bias", "attention_bias", "unsloth_fixed", "unsloth_version"),
    )
)
"""Fields beside those of transformers' classes that are read, or that do not change the model."""
_NOT_ASKED: Final = frozenset(
    (
        *("num_labels", "id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params", "prefix"),
        *("output_hidden_states", "output_attentions", "return_dict", "use_return_dict", "attn_implementation"),
        *("is_decoder", "is_encoder_decoder", "add_cross_attention", "chunk_size_feed_forward"),
        *("torch_dtype", "dtype"),
    )
)
"""Fields about other tasks, and about what a call returns, which transformers is not given.

It makes ten million names of labels, or keeps the hidden states of all layers, where they ask. Nor
is it given the type of the weights: the files say theirs, and that of the loaded ones is the
user's choice.
"""
_DTYPES: Final = ("auto", "bfloat16", "float16", "float32", "float64")
MAX_VOCAB: Final = 1 << 24
_SIZES: Final = {
    "num_hidden_layers": MAX_LAYERS,
    "hidden_size": MAX_WIDTH,
    "intermediate_size": MAX_WIDTH,
    "num_attention_heads": MAX_WIDTH,
    "num_key_value_heads": MAX_WIDTH,
    "head_dim": MAX_WIDTH,
    "vocab_size": MAX_VOCAB,
    "max_position_embeddings": 1 << 40,
    "original_max_position_embeddings": 1 << 40,
    "sliding_window": 1 << 40,
    "max_window_layers": 1 << 40,
}
_OPTIONAL: Final = ("num_key_value_heads", "head_dim", "sliding_window")
_MAY_BE_ZERO: Final = ("max_window_layers",)
_FLAGS: Final = ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window")
_DROPOUTS: Final = ("attention_dropout", "resid_pdrop", "embd_pdrop", "hidden_dropout", "attn_pdrop")
_QUANTISED: Final = ("quantization_config", "compression_config", "quantization", "load_in_4bit", "load_in_8bit")
_WINDOWS_BY_LAYER: Final = ("qwen2", "qwen3")
_NOT_IN_ALL: Final = ("attention_bias", "mlp_bias", "sliding_window", "use_sliding_window")
"""Fields that some families have, and that transformers does not compute in the others."""
_OTHERS: Final[Mapping[str, tuple[Any, ...]]] = {
    "use_bidirectional_attention": (False,),
    "per_layer_config": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "attention_multiplier": (1.0,),
    "embedding_multiplier": (1.0,),
    "residual_multiplier": (1.0,),
    "logits_scaling": (1.0,),
    "logit_scale": (1.0,),
    "clip_qkv": (),
    "attention_chunk_size": (),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (0,),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "n_routed_experts": (0, 1),
    "alibi": (False,),
    "lm_head_bias": (False,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "parallel_attn": (False,),
}
"""Fields of other architectures, with the values that ask for nothing.

transformers ignores them in the families here, so the model would be another one than was meant.
"""


def read_config(folder: Path) -> dict[str, Any]:
    """Return the object in a folder's config.json.

    Raises InvalidInputError where the folder is no model's, or the file is not what it should be.
    """
    file = folder / "config.json"
    adapter = folder / "adapter_config.json"
    if not folder.is_dir():
        raise invalid(folder, "not a model folder (there is no such folder)")
    if not file.exists():
        hint = "; it holds an adapter: give the folder of its base model" if adapter.exists() else ""
        raise invalid(folder, f"not a model folder (no config.json{hint})")
    if adapter.exists():
        # transformers would load the adapter into the base
        raise invalid(adapter, "a base model's folder must hold no adapter: move it to a folder of its own")
    return read_json(file, MAX_CONFIG_BYTES)


def invalid(file: str | Path, allowed: str, field: str = "", value: object = "") -> InvalidInputError:
    """Return the error about one field of a file, or about the file."""
    problems = Problems(str(file))
    problems.add(0, field, value, allowed)
    return problems.error()


def check_values(values: Mapping[str, Any], file: str | Path) -> None:
    """Check what a configuration says, before transformers makes anything of it.

    Raises InvalidInputError, which names every bad field.
    """
    problems = Problems(str(file))
    for key in _QUANTISED:
        if values.get(key):
            problems.add(
                0, key, _method(values[key]), "quantised weights are not supported: give the bf16 or fp32 model"
            )
    kind = str(values.get("model_type", ""))[:40]
    _check_family(kind, problems, custom=bool(values.get("auto_map")))
    for key, most in _SIZES.items():
        value = values.get(key)
        least = 0 if key in _MAY_BE_ZERO else 1
        if key not in values or (value is None and key in _OPTIONAL):
            continue
        if not _is_whole(value) or not least <= value <= most:
            problems.add(0, key, value, f"must be a whole number from {least} to {most}")
    for key in _FLAGS:
        if key in values and not isinstance(values[key], bool | None):
            problems.add(0, key, values[key], "must be true or false")
    for key in ("rms_norm_eps", "initializer_range"):
        if key in values and not is_number(values[key], 0.0, 1.0):
            problems.add(0, key, values[key], "must be a number from 0 to 1")
    for field, value, allowed in rope_field_faults(values):
        problems.add(0, field, value, allowed)
    _check_dropouts(values, problems)
    _check_dtype(values, problems)
    _check_family_fields(kind, values, problems)
    for key, nothing in _OTHERS.items():
        value = values.get(key)
        if value is not None and value not in nothing:
            problems.add(0, key, value, f"is no part of what transformers computes for {kind}: must be left out")
    layers = values.get("layer_types")
    if layers is not None and (not isinstance(layers, list) or len(layers) > MAX_LAYERS):
        problems.add(0, "layer_types", layers, "must be a list of one type per layer")
    problems.raise_if_any()


def check_config(config: Any, file: str | Path) -> None:
    """Check a transformers configuration with its defaults filled in.

    Raises InvalidInputError, which names every bad field.
    """
    problems = Problems(str(file))
    _check_family(config.model_type, problems)
    _check_dropouts({key: getattr(config, key, None) for key in _DROPOUTS}, problems)
    for key, most in _SIZES.items():
        value = getattr(config, key, None)
        if value is not None and not (_is_whole(value) and 0 <= value <= most):
            problems.add(0, key, value, f"must be a whole number of at most {most}")
    problems.raise_if_any()
    heads, pairs = config.num_attention_heads, config.num_key_value_heads
    if pairs and heads % pairs:
        problems.add(0, "num_key_value_heads", pairs, f"must divide the {heads} attention heads")
    if getattr(config, "head_dim", None) is None and config.hidden_size % heads:
        problems.add(0, "num_attention_heads", heads, f"must divide the hidden size of {config.hidden_size}")
    if not isinstance(config.hidden_act, str) or activation(config.hidden_act) is None:
        known = ", ".join(ACTIVATIONS)
        problems.add(
            0, "hidden_act", config.hidden_act, f"activation {config.hidden_act!r} is not supported (known: {known})"
        )
    _check_layers(config, problems)
    pad, most = getattr(config, "pad_token_id", None), config.vocab_size
    if isinstance(pad, int) and not -most <= pad < most:
        problems.add(0, "pad_token_id", pad, f"must be a token below the vocab_size of {most}, or null")
    problems.raise_if_any()


def _check_family(kind: str, problems: Problems, *, custom: bool = False) -> None:
    if kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        code = "; its custom code is not run" if custom else ""
        problems.add(0, "model_type", kind, f"model family {kind!r} is not supported{code} (known: {known})")


def _check_dropouts(values: Mapping[str, Any], problems: Problems) -> None:
    for key in _DROPOUTS:
        if values.get(key):
            problems.add(0, key, values[key], "the base model itself has dropout: must be 0")


def _check_family_fields(kind: str, values: Mapping[str, Any], problems: Problems) -> None:
    """Hold that what another family would compute is not asked of this one."""
    from transformers import CONFIG_MAPPING

    if kind not in FAMILIES:
        return
    defaults = {field.name: field.default for field in fields(CONFIG_MAPPING[kind])}
    own = defaults.keys()
    unused = ["sliding_window"] if values.get("use_sliding_window") is False else []
    for key in _NOT_IN_ALL:
        if key not in own and key not in unused and values.get(key) not in (None, False):
            problems.add(0, key, values[key], f"is not computed for {kind}: must be false or null, or left out")
    if values.get("use_sliding_window") is False and "sliding_window" in own and "use_sliding_window" not in own:
        # transformers goes by sliding_window alone, a mistral's is 4096 where nothing is said
        window, longest = (values.get(key, defaults[key]) for key in ("sliding_window", "max_position_embeddings"))
        if _is_whole(window) and _is_whole(longest) and window < longest:
            allowed = f"must be null beside use_sliding_window: false, which transformers does not read for {kind}"
            problems.add(0, "sliding_window", window, allowed)


def _check_dtype(values: Mapping[str, Any], problems: Problems) -> None:
    for key in ("dtype", "torch_dtype"):
        if values.get(key) not in (None, *_DTYPES):
            problems.add(0, key, values[key], f"must be one of {', '.join(_DTYPES)}")


def _check_layers(config: Any, problems: Problems) -> None:
    """Hold that the layers attend as the family's code has it."""
    layers = getattr(config, "layer_types", None)
    if layers is None:
        return
    window = getattr(config, "sliding_window", None)
    kinds = ["full_attention", "sliding_attention"]
    if config.model_type not in _WINDOWS_BY_LAYER:
        # the other families' code does not read the types: all layers are of one kind
        kinds = ["sliding_attention" if window else "full_attention"]
    elif not window:
        kinds = ["full_attention"]
    wrong = [kind for kind in layers if kind not in kinds]
    if wrong:
        allowed = f"a layer of this {config.model_type} must be {' or '.join(kinds)}"
        problems.add(0, "layer_types", wrong[0], allowed + ("" if window else " (no sliding_window in use)"))
    if len(layers) != config.num_hidden_layers:
        problems.add(
            0, "layer_types", f"{len(layers)} types", f"must be one for each of {config.num_hidden_layers} layers"
        )


def hf_config(values: Mapping[str, Any], file: str | Path) -> Any:
    """Return the checked transformers configuration of these values.

    Raises InvalidInputError.
    """
    from transformers import CONFIG_MAPPING

    check_values(values, file)
    # transformers writes into the rotary parameters that it is given
    asked = {key: deepcopy(value) for key, value in values.items() if key not in _NOT_ASKED and not key.startswith("_")}
    with blame(file):
        config = CONFIG_MAPPING[values["model_type"]].from_dict(asked)
    check_config(config, file)
    problems = Problems(str(file))
    for field, value, allowed in rope_faults(config):
        problems.add(0, field, value, allowed)
    problems.raise_if_any()
    return config


def own_config(values: Mapping[str, Any], file: str) -> Any:
    """Return the checked configuration that somebody wrote by hand.

    Raises InvalidInputError, also for a field that does not exist: it may be a slip.
    """
    config = hf_config(values, file)
    unknown = unknown_fields(values, config)
    if unknown:
        close = get_close_matches(unknown[0], [field.name for field in fields(config)], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise invalid(file, f"is no field of {config.model_type}'s configuration{hint}", unknown[0], values[unknown[0]])
    return config


def activation(name: str) -> str | None:
    """Return our name for the function that transformers has under `name`, or None."""
    from transformers.activations import ACT2FN

    return None if name not in ACT2FN else activation_of(ACT2FN[name])


def activation_of(function: Any) -> str | None:
    """Return our name for an activation of a loaded module, or None where we do not have it."""
    from transformers.activations import ACT2FN

    if type(function) is torch.nn.SiLU:  # under the name `swish`
        return "silu"
    return next((name for name in ACTIVATIONS if type(ACT2FN[name]) is type(function)), None)


def notes_on(values: Mapping[str, Any], config: Any) -> tuple[str, ...]:
    """Return what a configuration says and the model does not do, in words."""
    found = []
    asked = values.get("hidden_activation")
    if asked is not None and activation(str(asked)) != activation(config.hidden_act):
        found.append(
            f"hidden_activation {str(asked)[:40]!r} is not used: transformers goes by hidden_act ({config.hidden_act})"
        )
    unknown = unknown_fields(values, config)
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        found.append(f"fields of config.json not used: {printable(', '.join(unknown[:_SHOWN]), 200)}{more}")
    return tuple(found)


def unknown_fields(values: Mapping[str, Any], config: Any) -> list[str]:
    """Return the fields that neither transformers' class nor we know, and that say something."""
    known = (
        {field.name for field in fields(config)} | _OTHERS.keys() | _KNOWN | _NOT_ASKED | set(_SIZES) | set(_DROPOUTS)
    )
    return [key for key, value in values.items() if key not in known and not key.startswith("_") and value is not None]


def _method(value: Any) -> Any:
    return value.get("quant_method", value) if isinstance(value, dict) else value


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)

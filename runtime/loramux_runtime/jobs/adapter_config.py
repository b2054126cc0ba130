"""`adapter_config.json` says in PEFT's words how the adapter of a file is configured.

LoRA is PEFT's own file. The mixtures add `routing_strategy`, `num_experts`, `top_k` and the fields
of their configuration under the same names; MixLoRA has its attention adapters under
`attention_lora` (null: none). Files of the authors' tools are read too: there the attention
projections stand in `target_modules` (a list, or names with booleans), and `expert_lora` holds what
is different for the experts.
"""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, Final

from loramux_runtime.fused.adapters.configs import CONFIGS
from loramux_runtime.fused.adapters.lora.config import LoraConfig
from loramux_runtime.fused.adapters.mixlora.config import FFN, MixLoraConfig
from loramux_runtime.fused.sites import PRESETS
from loramux_runtime.jobs.peft_fields import CHECKED, IGNORED, INDICES, REFUSED, WHICH
from loramux_traces.errors import InvalidInputError, Problem
from loramux_traces.limits import MAX_RANK
from loramux_traces.strict_json import parse_json

_RENAMED: Final = {
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "router_init_std": "router_init_range",
}
_SHARED: Final = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")
"""Fields that may be different for the attention and for the experts of one MixLoRA."""
_PEFTS: Final = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
"""PEFT's own values where one of its files leaves them out; they are not those of a new job."""
_NO_METHOD: Final = frozenset((*IGNORED, *CHECKED, *WHICH))
"""Keys that are the same for every method, and no part of its configuration."""


class _Bad(Exception):
    """This error is about a key whose value cannot be taken; `allowed` says what can."""

    def __init__(self, key: str, value: Any, allowed: str) -> None:
        super().__init__(allowed)
        self.key, self.value, self.allowed = key, value, allowed


def write_config(method: str, config: Any, modules: tuple[str, ...], base_name: str) -> dict[str, Any]:
    """Return the JSON object of a configuration.

    `modules` are the linears that a LoRA adapts (PEFT does not know our presets).
    """
    document: dict[str, Any] = {
        "peft_type": method.upper(),
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "bias": "none",
    }
    if method == "lora":
        document |= {"fan_in_fan_out": False, "init_lora_weights": True, "modules_to_save": None}
        return document | _write(config) | {"target_modules": list(modules)}
    document |= {"routing_strategy": method, "top_k": None} | _write(config)
    if isinstance(config, MixLoraConfig):
        document["target_modules"] = document.pop("expert_modules")
        attention = document.pop("attention")
        document["attention_lora"] = None if attention is None else _write(attention)
    return document


def _write(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, tuple):
            value = list(value)
        elif field.name == "alpha" and value == int(value):
            value = int(value)  # PEFT's own files hold an integer
        elif isinstance(value, float) and math.isinf(value):
            value = str(value)
        found[_RENAMED.get(field.name, field.name)] = value
    return found


def parse_config(text: str | bytes, file: str) -> tuple[str, Any]:
    """Return (method, configuration) of an `adapter_config.json`.

    Raises InvalidInputError, which names the key at fault.
    """
    try:
        document = parse_json(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise _invalid(file, "", "", f"not readable as JSON ({error})") from error
    if not isinstance(document, dict):
        raise _invalid(file, "", "", "must hold a JSON object")
    return config_of(document, file)


def config_of(document: Mapping[str, Any], file: str) -> tuple[str, Any]:
    """Return (method, configuration) of a configuration object.

    A key that is missing or null takes the method's default, of LoRA that of PEFT.
    """
    try:
        method = _method(document)
        return method, _config(method, document)
    except _Bad as bad:
        raise _invalid(file, bad.key, json.dumps(bad.value, default=str)[:80], bad.allowed) from bad
    except ValueError as error:  # what the configuration's own checks say
        raise _invalid(file, "", "", str(error)) from error


def known_keys(method: str) -> frozenset[str]:
    """Return the keys that a configuration of this method may hold with any legal value."""
    names = {_RENAMED.get(field.name, field.name) for field in fields(CONFIGS[method])}
    if method == "mixlora":
        names = names - {"attention", "expert_modules"} | {"target_modules", "attention_lora", "expert_lora"}
    return frozenset(names.union(_NO_METHOD, ("num_experts", "top_k")))


def _invalid(file: str, key: str, value: str, allowed: str) -> InvalidInputError:
    return InvalidInputError([Problem(file=file, line=0, column=key, value=value, allowed=allowed)])


def _method(document: Mapping[str, Any]) -> str:
    named = {key: document[key] for key in WHICH if document.get(key) is not None}
    for key, value in named.items():
        if not isinstance(value, str) or value.lower() not in CONFIGS:
            raise _Bad(key, value, f"must be one of {', '.join(CONFIGS)}")
    if named:
        return next(str(value).lower() for value in named.values())
    raise _Bad("peft_type", None, "is missing: it says which method this is")


def _config(method: str, document: Mapping[str, Any]) -> Any:
    if method == "lora" and isinstance(document.get("target_modules"), list):
        document = _without_excluded(document)
    _refuse_others(document, known_keys(method), "")
    if method == "lora" and document.get("peft_type") is not None:
        # The file is PEFT's, and so is what it leaves out.
        document = {**document, **{key: value for key, value in _PEFTS.items() if document.get(key) is None}}
    if method == "mixlora":
        return _mixlora(document)
    config_type = CONFIGS[method]
    values = _values(config_type, document)
    config = config_type(**values)
    top_k = document.get("top_k")
    # soft and dynamic routing have no k of their own
    if top_k is not None and "top_k" not in values:
        own = {"loramoe": "num_experts", "dynmole": "keep_top_k"}.get(method)
        if own is None or top_k != getattr(config, own):
            raise _Bad("top_k", top_k, f"{method} has no top_k" + (f" other than its {own}" if own else ""))
    if method == "lora" and document.get("num_experts") is not None:
        raise _Bad("num_experts", document["num_experts"], "LoRA has no experts")
    return config


def _without_excluded(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out the linears that `exclude_modules` names, where it is a list."""
    excluded = document.get("exclude_modules")
    if not isinstance(excluded, list):
        return document
    names = _modules("exclude_modules", excluded) or ()
    wanted = [name for name in _modules("target_modules", document["target_modules"]) or () if name not in names]
    return {**document, "target_modules": wanted, "exclude_modules": None}


def _refuse_others(document: Mapping[str, Any], known: Collection[str], within: str) -> None:
    """Refuse a key that we do not know, unless its value asks for nothing."""
    for key, value in document.items():
        if key in CHECKED:
            fault = CHECKED[key](value)
            if fault is not None:
                raise _Bad(f"{within}{key}", value, fault)
        elif key not in known and not _asks_nothing(key, value):
            raise _Bad(f"{within}{key}", value, REFUSED.get(key, "is not supported for this method"))


def _asks_nothing(key: str, value: Any) -> bool:
    """Return whether a value is none, no or empty (0 is, if it is no number of a layer)."""
    if type(value) in (int, float):
        return value == 0 and key not in INDICES
    return value in (None, False, {}, [], "", "none")


def _mixlora(document: Mapping[str, Any]) -> MixLoraConfig:
    own = {key: value for key, value in document.items() if key not in ("attention_lora", "expert_lora")}
    names = _modules("target_modules", own.pop("target_modules", None))
    experts, rest = _split(names)
    changes = _sub_object("expert_lora", document.get("expert_lora") or {})
    _refuse_others(changes, (*_SHARED, *_NO_METHOD), "expert_lora.")
    values = _values(MixLoraConfig, {**own, **changes})
    if names is not None:
        values["expert_modules"] = experts
    if "attention_lora" in document:
        if rest:
            raise _Bad("target_modules", rest, "attention's linears are named in attention_lora")
        inner = document["attention_lora"]
        values["attention"] = None if inner is None else _attention(_sub_object("attention_lora", inner))
    elif names is not None:
        same: dict[str, Any] = {key: own[key] for key in _SHARED if key in own}
        values["attention"] = _attention({**same, "target_modules": rest}) if rest else None
    return MixLoraConfig(**values)


def _split(names: str | tuple[str, ...] | None) -> tuple[tuple[str, ...], str | list[str]]:
    """Split `target_modules` into (the experts' linears, those of attention).

    On bases that fuse them, `gate_up_proj` stands for two linears.
    """
    if names is None:
        return (), ""
    if names in ("all-linear", "mlp"):
        return FFN, "attention" if names == "all-linear" else ""
    chosen = () if isinstance(names, str) else names
    experts = tuple(name for name in FFN if name in chosen or ("gate_up_proj" in chosen and name in FFN[:2]))
    if not experts:
        raise _Bad("target_modules", names, f"must name some of {', '.join(FFN)}")
    return experts, [name for name in chosen if name not in (*FFN, "gate_up_proj")]


def _attention(document: Mapping[str, Any]) -> LoraConfig:
    _refuse_others(document, known_keys("lora"), "attention_lora.")
    return LoraConfig(**{"target_modules": "attention", **_values(LoraConfig, document)})


def _sub_object(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Bad(key, value, "must be an object")
    return value


def _values(config_type: type[Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that the document gives, checked against their declared types."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(config_type).items():
        key = _RENAMED.get(name, name)
        value = document.get(key)
        if value is None or name in ("attention", "expert_modules"):
            continue
        found[name] = _modules(key, value) if name == "target_modules" else _typed(key, value, hint)
    return found


def _typed(key: str, value: Any, hint: Any) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if bool in kinds and isinstance(value, bool):
        return value
    if not isinstance(value, bool):
        if int in kinds and isinstance(value, int) and abs(value) <= MAX_RANK:
            return value
        if float in kinds and (_finite(value) or (value, key) == ("inf", "entropy_threshold")):
            return float(value)
        whole = isinstance(value, list) and all(type(item) is int and abs(item) <= MAX_RANK for item in value)
        if tuple[int, ...] in kinds and whole:
            return tuple(value)
    integer = f"an integer of at most {MAX_RANK}"
    words = {bool: "true or false", int: integer, float: "a finite number", tuple[int, ...]: "a list of such integers"}
    raise _Bad(key, value, f"must be {' or '.join(words[kind] for kind in kinds)}")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300


def _modules(key: str, value: Any) -> str | tuple[str, ...] | None:
    """Read a preset, a list of names, or names with booleans.

    Names with booleans stand in the authors' training configurations.
    """
    if value is None:
        return None
    if isinstance(value, str):
        if value not in PRESETS:
            raise _Bad(key, value, f"must be a list of linears or one of {', '.join(PRESETS)}")
        return value
    if isinstance(value, dict) and all(isinstance(wanted, bool) for wanted in value.values()):
        value = [name for name, wanted in value.items() if wanted]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _Bad(key, value, "must be a list of linears, or linears with true or false")
    return _linears(key, value)


def _linears(key: str, paths: list[str]) -> tuple[str, ...]:
    """Return the names of the linears, which may be given with their paths.

    PEFT writes every path in full for `all-linear`. An adapter is on every layer, so that a linear
    must be named in all layers up to the last; whether the base has more shows when the tensors are
    read.
    """
    layers: dict[str, set[int]] = {}
    for path in paths:
        within, _, name = path.rpartition(".")
        found = re.search(r"(?:^|\.)layers\.(\d{1,6})(?:\.|$)", within)
        layers.setdefault(name, set()).update({int(found[1])} if found else ())
    numbers = set().union(*layers.values())
    whole = set(range(max(numbers) + 1)) if numbers else set()
    for name, own in layers.items():
        if own and own != whole:
            raise _Bad(key, f"{name} in {len(own)} layers", f"must be in each of the {len(whole)} layers: all or none")
    return tuple(layers)

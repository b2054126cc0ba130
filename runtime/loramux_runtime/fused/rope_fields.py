"""What a configuration says about rotary positions is all computed, or refused with its field.

transformers takes the keys that a type of rotary positions has and passes over the others, so that
a base with another key, or with two values for one thing, would be another model than was meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from transformers import Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

Fault = tuple[str, Any, str]
"""A field, its value and what is allowed."""
MAX_FACTORS: Final = 1 << 16
_LENGTH: Final = "original_max_position_embeddings"
_TWICE: Final = ("rope_theta", "partial_rotary_factor", _LENGTH)
"""What may stand beside the rotary parameters as well as in them."""
_ALWAYS: Final = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned")
_ZERO_SAYS: Final = ("mscale", "mscale_all_dim")


class _Keys(NamedTuple):
    """These are the keys that transformers reads for one type."""

    needed: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


_KEYS: Final[Mapping[str, _Keys]] = {
    "default": _Keys(),
    "linear": _Keys(("factor",)),
    "yarn": _Keys(
        ("factor",), (_LENGTH, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
    ),
    "llama3": _Keys(("factor", "low_freq_factor", "high_freq_factor"), (_LENGTH,)),
    "proportional": _Keys((), ("factor",)),
    "dynamic": _Keys(("factor",)),
    "longrope": _Keys(("short_factor", "long_factor"), ("factor", "attention_factor", _LENGTH)),
}
_PHI3: Final = ("default", "longrope")
"""Types that Phi-3 has: transformers would compute `yarn` as `longrope`."""


def known_types(family: str = "") -> tuple[str, ...]:
    """Return the types of rotary positions that this version of transformers computes."""
    names = _PHI3 if family == "phi3" else tuple(_KEYS)
    return tuple(name for name in names if name == "default" or name in ROPE_INIT_FUNCTIONS)


def rope_field_faults(values: Mapping[str, Any]) -> list[Fault]:
    """Return what is wrong with the rotary positions of a configuration as somebody wrote it."""
    faults = list(_outer_faults(values))
    given = {name: values[name] for name in ("rope_scaling", "rope_parameters") if values.get(name) is not None}
    faults += [(name, value, "must be an object, or null") for name, value in given.items() if type(value) is not dict]
    if faults:
        return faults
    sets = [(name, value) for name, value in given.items() if value]
    if len(sets) == 2 and sets[0][1] != sets[1][1]:
        return [("rope_parameters", sets[1][1], "says something else than rope_scaling: give one of the two")]
    return list(_faults(*sets[0], values)) if sets else []


def _outer_faults(values: Mapping[str, Any]) -> Iterator[Fault]:
    for key in ("rope_theta", "partial_rotary_factor"):
        # where a part is left out, llama's code turns whole heads, and Phi-3's cannot be built
        null = key == "partial_rotary_factor" and values.get("model_type") not in ("glm", "glm4", "phi3")
        value = values.get(key)
        if key in values and not (_above_zero(value) or (value is None and null)):
            yield key, value, "must be a finite number above 0, or left out"


def _faults(where: str, found: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield what is wrong with one set of parameters."""
    if any(isinstance(value, dict) for value in found.values()):
        yield where, "", "must be one set for all layers, not one for each type of layer"
        return
    named = {key: found[key] for key in ("rope_type", "type") if key in found}
    types = list(dict.fromkeys(str(name) for name in named.values()))
    family = str(values.get("model_type"))
    allowed = f"must be one of {', '.join(known_types(family))}"
    if len(types) > 1:
        yield f"{where}.rope_type", named["rope_type"], f"says something else than type ({types[1][:40]}): {allowed}"
        return
    kind = types[0] if types else "default"
    if kind not in known_types(family):
        yield f"{where}.{next(iter(named))}", next(iter(named.values())), allowed
        return
    keys = _KEYS[kind]
    for key, value in found.items():
        if key in (*_ALWAYS, *keys.needed, *keys.others):
            if not _takes(key, value, kind):
                yield f"{where}.{key}", value, _wanted(key)
        elif value is not None and not (kind == "default" and key == "factor" and value == 1):
            if not types:
                yield f"{where}.rope_type", "", f"is missing beside {key}: {allowed}"
                return
            has = ", ".join((*keys.needed, *keys.others, "rope_theta", "partial_rotary_factor"))
            yield f"{where}.{key}", value, f"is not computed for {kind} rotary positions, which have {has}"
    for key in keys.needed:
        if key not in found:
            yield f"{where}.{key}", "", f"is missing: {kind} rotary positions need it"
    yield from _contradictions(where, found, values, family)


def _contradictions(where: str, found: Mapping[str, Any], values: Mapping[str, Any], family: str) -> Iterator[Fault]:
    """Yield what stands in the set and beside it with different values."""
    for key in _TWICE:
        inner, outer = found.get(key), values.get(key)
        if outer is None and key == _LENGTH and family == "phi3":
            outer = Phi3Config.original_max_position_embeddings  # which goes before the set's
        if inner is not None and outer is not None and inner != outer:
            yield f"{where}.{key}", inner, f"says something else than {key} ({str(outer)[:40]}) beside it: give one"


def _takes(key: str, value: Any, kind: str) -> bool:
    """Return whether a key may have this value."""
    if key in ("rope_type", "type", "finetuned"):
        return True
    if value is None:
        # transformers puts its own value where the key is absent, not where it is null
        return key not in ("rope_theta", *_KEYS[kind].needed) or (kind, key) == ("yarn", "factor")
    if key == "truncate":
        return isinstance(value, bool)
    if key in ("short_factor", "long_factor"):
        return type(value) is list and 0 < len(value) <= MAX_FACTORS and all(map(_above_zero, value))
    return _above_zero(value) or (key in _ZERO_SAYS and is_number(value, 0, 0))


def _wanted(key: str) -> str:
    if key == "truncate":
        return "must be true or false"
    return (
        f"must be a {'list of finite numbers' if key in ('short_factor', 'long_factor') else 'finite number'} above 0"
    )


def _above_zero(value: Any) -> bool:
    return is_number(value, 1e-30, 1e30)


def is_number(value: Any, least: float, most: float) -> bool:
    """Return whether a value is a number in a range, and neither true nor false."""
    # not a number is in no range, and a number of 400 digits compares without becoming a float
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most

"""What each field of an adapter_config.json means for what the adapter computes.

Every field of PEFT's `LoraConfig` stands in one of these tables or is a field of our own
configurations; a test walks them all, so that a new one of PEFT's breaks the test. A key that
stands nowhere is refused, unless its value asks for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

IGNORED: Final[Mapping[str, str]] = {
    "base_model_name_or_path": "where the base was; the shapes of all tensors are held against this base",
    "inference_mode": "whether PEFT freezes the adapter after loading it",
    "auto_mapping": "PEFT's way back to the base's class (checked: it must be a causal language model's)",
    "peft_version": "who wrote the file",
    "eva_config": "how the first values were made, which is over",
    "corda_config": "how the first values were made; that the base was changed is in init_lora_weights",
    "lora_ga_config": "how the first values were made; that the base was changed is in init_lora_weights",
    "loftq_config": "how the first values were made; that the base was changed is in init_lora_weights",
    "megatron_core": "the name of a library, used only with megatron_config",
    "qalora_group_size": "used only with use_qalora",
    "runtime_config": "where PEFT computes; it is not saved",
    "ensure_weight_tying": "about layers of modules_to_save and embeddings, which are refused",
    "name": "the authors' tools: what the adapter is called",
    "dtype": "the authors' tools: what the adapter was trained in; the tensors say what they are",
    "loss": "the authors' tools: whether a loss is shown",
    "aux_loss": "the authors' tools: whether a loss is shown",
}
"""Fields that change nothing about what a trained adapter computes, and why."""

REFUSED: Final[Mapping[str, str]] = {
    "exclude_modules": "list the linears in target_modules instead",
    "fan_in_fan_out": "the linears of these bases are stored the other way round",
    "bias": "must be none: biases of the base are not trained",
    "modules_to_save": "must be null: no module of the base is trained whole",
    "layers_to_transform": "must be null: an adapter is on every layer",
    "layers_pattern": "must be null: an adapter is on every layer",
    "rank_pattern": "must be empty: an adapter has one rank",
    "alpha_pattern": "must be empty: an adapter has one alpha",
    "megatron_config": "must be null: megatron's parallel linears are not supported",
    "trainable_token_indices": "must be null: embeddings are not trained",
    "velora_config": "must be null: VeLoRA trains with other gradients",
    "alora_invocation_tokens": "must be null: an activated LoRA acts on a part of the tokens only",
    "use_qalora": "must be false: QA-LoRA needs a quantised base",
    "monteclora_config": "must be null: MonteCLoRA draws its weights at random",
    "layer_replication": "must be null: the base's layers are used as they are",
    "lora_bias": "must be false: low-rank updates have no bias",
    "target_parameters": "must be empty: only linears are adapted",
    "use_bdlora": "must be null: block-diagonal LoRA stores other tensors",
    "arrow_config": "must be null: Arrow mixes several adapters",
    "kasa_config": "must be null: KaSA changes the base's weights",
}
"""Fields of PEFT that would make another function of it, and what is allowed."""

INDICES: Final = ("layers_to_transform", "trainable_token_indices", "alora_invocation_tokens")
"""Fields that hold the number of a layer or of a token, of which 0 is the first one."""

_CONVERT: Final = (
    "changes the base's weights: save it with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion="
    "FOLDER OF THE ADAPTER BEFORE TRAINING), which makes a plain LoRA of it"
)
_ONLY_FIRST_VALUES: Final = ("gaussian", "eva", "orthogonal")
"""Initialisations that leave the base alone and nothing behind but the values of A and B."""


def init_fault(value: Any) -> str | None:
    """Return why an adapter that was initialised so is refused, or None."""
    if value is None or isinstance(value, bool):
        return None
    name = value.lower() if isinstance(value, str) else ""
    if name in _ONLY_FIRST_VALUES:
        return None
    if re.fullmatch(r"pissa(_niter_\d{1,9})?|olora|corda|lora_ga", name):
        return _CONVERT
    if name == "loftq":
        return "replaces the base's weights by quantised ones: save the base with them, and the adapter as a plain LoRA"
    if name == "mica":
        return "keeps B fixed in training, which is not supported"
    return f"must be true, false or one of {', '.join(_ONLY_FIRST_VALUES)}"


def task_fault(value: Any) -> str | None:
    """Return why an adapter for this task is refused, or None."""
    return None if value in (None, "CAUSAL_LM") else "must be CAUSAL_LM: bases are causal language models"


def mapping_fault(value: Any) -> str | None:
    """Return why an adapter of this class of base is refused, or None."""
    name = value.get("base_model_class") if isinstance(value, dict) else value
    if name is None or (isinstance(name, str) and name.endswith("ForCausalLM")):
        return None
    return "base_model_class must be a causal language model's (...ForCausalLM)"


def revision_fault(value: Any) -> str | None:
    """Return why an adapter of this revision of its base is refused, or None."""
    if value in (None, "", "main"):
        return None
    return "names one revision of the base, and a folder does not say which it holds: if it is that one, set it to null"


CHECKED: Final[Mapping[str, Callable[[Any], str | None]]] = {
    "init_lora_weights": init_fault,
    "task_type": task_fault,
    "auto_mapping": mapping_fault,
    "revision": revision_fault,
}
"""Fields some of whose values are refused: what is wrong with a value, or None."""

WHICH: Final = ("method", "routing_strategy", "peft_type")
"""Fields that say which method this is, the most telling first."""

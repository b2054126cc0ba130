"""The frozen base is a Hugging Face decoder that carries the adapters.

It comes from a local folder, or from a named shape with random weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn

from loramux_profiles.shape_catalog import load_shape
from loramux_runtime.fused.attention import NAME
from loramux_runtime.fused.kernels.gated import ACTIVATIONS
from loramux_runtime.fused.rope import longest_position
from loramux_runtime.fused.sites import BaseSites, Site
from loramux_traces.errors import InvalidInputError, Problem, UsageError
from loramux_traces.files import MAX_SMALL, MAX_TABLE, MAX_TOKENIZER, check_folder

os.environ.setdefault("HF_HUB_OFFLINE", "1")

FAMILIES: Final = ("llama", "qwen2", "qwen3", "mistral", "gemma", "glm", "glm4", "phi3")
DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
FrozenDtype = Literal["fp32", "bf16", "fp64"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base model is a loaded, frozen decoder.

    `hf` runs packed attention and must only be called inside a fused step.
    """

    name: str
    hf: Any
    sites: BaseSites
    act: str
    dtype: torch.dtype
    device: torch.device
    weights: dict[tuple[int, str], Tensor]
    """Frozen linears by (layer, name)."""

    @property
    def vocab(self) -> int:
        """The number that token ids are below."""
        return int(self.hf.config.vocab_size)

    @property
    def longest_position(self) -> int | None:
        """How many positions the model was made for; None where its configuration is silent."""
        return longest_position(self.hf.config)

    def weight(self, layer: int, name: str) -> Tensor:
        """Return the frozen weight [n_out, n_in] of a linear.

        gate_proj and up_proj are known also where the base fuses them.
        """
        weight: Tensor | None = self.weights.get((layer, name))
        if weight is None:
            weight = self.weights[layer, "gate_up_proj"].chunk(2)[name == "up_proj"]
        return weight

    @property
    def weight_bytes(self) -> int:
        """The bytes of all weights, with tied ones counted once."""
        return sum(p.numel() * p.element_size() for p in self.hf.parameters())


def _invalid(file: str | Path, allowed: str) -> InvalidInputError:
    return InvalidInputError([Problem(file=str(file), line=0, column="", value="", allowed=allowed)])


def _check_config(config: Any, name: str) -> str:
    """Return the activation of a model that can be a base.

    Raises UsageError for the others.
    """
    if config.model_type not in FAMILIES:
        raise UsageError(f"{name}: model family {config.model_type!r} is not supported (known: {', '.join(FAMILIES)})")
    act = getattr(config, "hidden_activation", None) or config.hidden_act
    if act not in ACTIVATIONS:
        raise UsageError(f"{name}: activation {act!r} is not supported (known: {', '.join(ACTIVATIONS)})")
    if getattr(config, "attention_dropout", 0.0) or getattr(config, "resid_pdrop", 0.0):
        raise UsageError(f"{name}: the base model itself has dropout; set it to 0 in its config.json")
    return str(act)


def _frozen(hf: Any, name: str, dtype: torch.dtype, device: torch.device) -> BaseModel:
    config = hf.config
    act = _check_config(config, name)
    hf.requires_grad_(False)
    hf.eval()
    layer = hf.model.layers[0]
    sites = [
        Site(name=child, block=block, n_in=linear.in_features, n_out=linear.out_features)
        for block in ("self_attn", "mlp")
        for child, linear in getattr(layer, block).named_children()
        if isinstance(linear, nn.Linear)
    ]
    return BaseModel(
        name=name,
        hf=hf,
        sites=BaseSites(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            ffn=config.intermediate_size,
            sites=tuple(sites),
        ),
        act=act,
        dtype=dtype,
        device=device,
        weights={
            (index, site.name): getattr(getattr(layer, site.block), site.name).weight
            for index, layer in enumerate(hf.model.layers)
            for site in sites
        },
    )


def load_base(path: str | Path, *, dtype: FrozenDtype = "bf16", device: torch.device | str = "cpu") -> BaseModel:
    """Load a local Hugging Face folder: safetensors only, no remote code, no network.

    Raises InvalidInputError where the folder is not such a model, UsageError for an unsupported
    family.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise _invalid(folder, "not a model folder (no config.json)")
    if not any(folder.glob("*.safetensors")):
        raise _invalid(folder, "no .safetensors weights (pickled ones are code and are not loaded)")
    check_folder(folder, ("*.json",), MAX_TOKENIZER, "a model's configuration")
    check_folder(folder, ("*.safetensors",), MAX_TABLE, "a file of weights")

    def make() -> Any:
        local: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        auto: Any = AutoModelForCausalLM
        _check_config(AutoConfig.from_pretrained(folder, **local), str(path))
        hf, about = auto.from_pretrained(
            folder,
            dtype=DTYPES[dtype],
            attn_implementation=NAME,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **local,
        )
        # Without this check transformers takes random values for these and only warns
        wrong = [f"{name} is missing" for name in sorted(about["missing_keys"])]
        wrong += [f"{key[0]} has shape {tuple(key[1])}" for key in sorted(about["mismatched_keys"])]
        surplus = sorted(name for name in about["unexpected_keys"] if not name.endswith("rotary_emb.inv_freq"))
        wrong += [f"{name} is surplus" for name in surplus]
        if wrong:
            raise ValueError(f"the weights do not fit config.json: {wrong[0]}")
        return hf

    return _made(make, str(path), dtype, device)


def _made(make: Callable[[], Any], name: str, dtype: FrozenDtype, device: torch.device | str) -> BaseModel:
    where = torch.device(device)
    try:
        with where:
            hf = make()
    except (OSError, ValueError, KeyError, SafetensorError, StrictDataclassError) as error:
        raise _invalid(name, str(error)) from error
    except RuntimeError as error:
        # The shapes are wrong; but running out of memory is not the folder's fault
        if isinstance(error, torch.OutOfMemoryError) or "allocate" in str(error):
            raise
        raise _invalid(name, str(error)) from error
    return _frozen(hf.to(where), name, DTYPES[dtype], where)


def build_base(
    config: Any, *, name: str = "", dtype: FrozenDtype = "bf16", device: torch.device | str = "cpu", seed: int = 0
) -> BaseModel:
    """Build a model of a transformers configuration with random weights.

    Speed and memory do not depend on the values.
    """
    import transformers

    auto: Any = transformers.AutoModelForCausalLM

    def make() -> Any:
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        try:
            return auto.from_config(config, dtype=DTYPES[dtype], attn_implementation=NAME)
        finally:
            torch.random.set_rng_state(state)

    return _made(make, name or config.model_type, dtype, device)


def outline(path: str | Path, *, dtype: FrozenDtype = "bf16") -> BaseModel:
    """Return the model of a folder without its weights (device `meta`).

    Raises InvalidInputError where the folder is no model's.
    """
    from transformers import AutoConfig

    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise _invalid(folder, "not a model folder (no config.json)")
    check_folder(folder, ("config.json",), MAX_SMALL, "a model's configuration")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise _invalid(folder, str(error)) from error
    return build_base(config, name=str(path), dtype=dtype, device="meta")


def shape_config(name: str, **changes: Any) -> Any:
    """Return a llama-like transformers configuration with the shape of that name.

    The shapes are those of `loramux_profiles.shapes`.
    """
    from transformers import AutoConfig

    shape = load_shape(name)
    values: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied_embeddings,
        "attention_bias": shape.qkv_bias,
        "max_position_embeddings": 8192,
    }
    return AutoConfig.for_model("llama", **{**values, **changes})

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
from torch import Tensor, nn

from loramux_profiles.shape_catalog import load_shape
from loramux_runtime.fused.attention import NAME
from loramux_runtime.fused.base_config import (
    activation_of,
    check_config,
    hf_config,
    invalid,
    notes_on,
    read_config,
)
from loramux_runtime.fused.base_weights import check_finite, check_tensors, check_weights
from loramux_runtime.fused.blame import blame
from loramux_runtime.fused.kernels.gated import ACTIVATIONS
from loramux_runtime.fused.rope import longest_position
from loramux_runtime.fused.sites import BaseSites, Site
from loramux_traces.files import MAX_TABLE, MAX_TOKENIZER, check_folder

os.environ.setdefault("HF_HUB_OFFLINE", "1")

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
    notes: tuple[str, ...] = ()
    """What its configuration says and the model does not do, for people."""

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


def _frozen(hf: Any, name: str, dtype: torch.dtype, device: torch.device, notes: tuple[str, ...] = ()) -> BaseModel:
    config = hf.config
    hf.requires_grad_(False)
    hf.eval()
    layer = hf.model.layers[0]
    # From the module that computes: what a field of the configuration means depends on the family
    function = layer.mlp.act_fn if hasattr(layer.mlp, "act_fn") else layer.mlp.activation_fn
    act = activation_of(function)
    if act is None:
        raise invalid(name, f"activation {function} is not supported (known: {', '.join(ACTIVATIONS)})", "hidden_act")
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
        notes=notes,
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

    Raises InvalidInputError where the folder is not a model of a supported family.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    folder = Path(path)
    check_folder(folder, ("*.json",), MAX_TOKENIZER, "a model's configuration")
    check_folder(folder, ("*.safetensors",), MAX_TABLE, "a file of weights")
    values = read_config(folder)
    config = hf_config(values, folder / "config.json")
    check_weights(folder, config)

    def make() -> Any:
        auto: Any = AutoModelForCausalLM
        nothing: Any = GenerationConfig
        hf, about = auto.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[dtype],
            attn_implementation=NAME,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            # nothing is generated, and the file may be bad
            generation_config=nothing(),
            trust_remote_code=False,
            local_files_only=True,
        )
        # Without this check transformers takes random values for these and only warns
        wrong = [(name, "is missing") for name in sorted(about["missing_keys"])]
        wrong += [
            (key[0], f"has shape {tuple(key[1])}, not {tuple(key[2])}") for key in sorted(about["mismatched_keys"])
        ]
        surplus = sorted(name for name in about["unexpected_keys"] if not name.endswith("rotary_emb.inv_freq"))
        wrong += [(name, "is surplus") for name in surplus]
        if wrong:
            name, text = wrong[0]
            more = f" ({len(wrong)} tensors do not fit)" if len(wrong) > 1 else ""
            raise invalid(folder, f"the weights do not fit config.json: {name} {text}{more}", name)
        return hf

    base = _made(make, str(path), dtype, device, notes=notes_on(values, config))
    _own_memory(base.hf)
    check_finite(base.hf, folder)
    return base


def _own_memory(hf: Any) -> None:
    """Copy the weights that are still the file's pages, mapped into memory.

    Whoever overwrites such a file changes the model under training, and whoever cuts it kills the
    process.
    """
    for tensor in (*hf.parameters(), *hf.buffers()):
        # torch can resize the memory that it has taken itself, and no other
        if tensor.device.type == "cpu" and not tensor.untyped_storage().resizable():
            tensor.data = tensor.data.clone()


def _made(
    make: Callable[[], Any], name: str, dtype: FrozenDtype, device: torch.device | str, notes: tuple[str, ...] = ()
) -> BaseModel:
    where = torch.device(device)
    with blame(name), where:
        hf = make()
    return _frozen(hf.to(where), name, DTYPES[dtype], where, notes)


def build_base(
    config: Any, *, name: str = "", dtype: FrozenDtype = "bf16", device: torch.device | str = "cpu", seed: int = 0
) -> BaseModel:
    """Build a model of a transformers configuration with random weights.

    Speed and memory do not depend on the values. Raises InvalidInputError where the configuration
    is not one of a supported family.
    """
    import transformers

    check_config(config, name or config.model_type)
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

    Raises InvalidInputError where the folder is no model's; its weights are looked over as in
    `load_base`.
    """
    folder = Path(path)
    check_folder(folder, ("*.json",), MAX_TOKENIZER, "a model's configuration")
    check_folder(folder, ("*.safetensors",), MAX_TABLE, "a file of weights")
    config = hf_config(read_config(folder), folder / "config.json")
    shapes = check_weights(folder, config)
    base = build_base(config, name=str(path), dtype=dtype, device="meta")
    check_tensors(base.hf, shapes, folder)
    return base


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

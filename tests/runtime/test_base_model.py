"""Loading a base: what is wrong with a folder is said, and nothing of it runs.

Weights are never made up.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from loramux_runtime.fused.base_model import build_base, load_base, shape_config
from loramux_traces.errors import InvalidInputError, UsageError

from .matrix import build

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


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (_weights(lambda w: w.pop(UP)), f"{UP} is missing"),
    "surplus": (_weights(lambda w: w.update({"model.layers.0.mlp.up_proj.bias": torch.ones(64)})), "bias is surplus"),
    "shape": (_weights(lambda w: w.update({UP: torch.zeros(3, 3)})), rf"{UP} has shape \(3, 3\)"),
    "truncated": (_truncate, "header"),
    "no-config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "pickled": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "no .safetensors"),
    "json": (lambda f: (f / "config.json").write_text("{"), "JSON"),
    "list": (lambda f: (f / "config.json").write_text("[]"), "model_type"),
    "type": (_config(hidden_size="x"), "hidden_size"),
    "negative": (_config(hidden_size=-4), "negative"),
    "code": (_config(model_type="x", auto_map={"AutoConfig": "x.C", "AutoModelForCausalLM": "x.M"}), "custom code"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_folder_is_refused(fault: str, folder: Path) -> None:
    change, words = BAD[fault]
    change(folder)
    with pytest.raises(InvalidInputError, match=words):
        load_base(folder, dtype="fp32")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mixtral"}, "family 'mixtral' is not supported"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"attention_dropout": 0.1}, "dropout"),
    ],
)
def test_an_unsupported_model_is_refused_before_its_weights_are_read(
    changes: dict[str, Any], words: str, folder: Path
) -> None:
    _config(**changes)(folder)
    _truncate(folder)
    with pytest.raises(UsageError, match=words):
        load_base(folder, dtype="fp32")


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

"""LoRA, rsLoRA and DoRA against PEFT: gradients, and the loss curve of 20 AdamW steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from loramux_runtime.fused.adapters.base import Adapter
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import IGNORED, MicroBatch, Part
from loramux_runtime.jobs.adapter_files import load_adapter, save_adapter
from loramux_traces.errors import InvalidInputError

from .matrix import batch, case, fused, grads, shaken, worst
from .reference import plain_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
"""PEFT 0.21 asks transformers 5.24 for it."""

KINDS = ("lora", "rslora", "dora")


def in_peft(model: FusedModel, adapter: Adapter, folder: Path, *, trainable: bool = True) -> Any:
    """The adapter's file, loaded by PEFT on the plain base."""
    save_adapter(adapter, folder, "the/base")
    return PeftModel.from_pretrained(plain_model(model.base), str(folder), is_trainable=trainable)


def _named(peft: Any, *, of_grads: bool) -> dict[str, Tensor]:
    """PEFT's tensors (or their gradients) by the names of the file."""
    values = get_peft_model_state_dict(peft, save_embedding_layers=False)
    if not of_grads:
        return {name: value.detach() for name, value in values.items()}
    at = {value.data_ptr(): name for name, value in values.items()}
    return {
        at[parameter.data_ptr()]: parameter.grad
        for parameter in peft.parameters()
        if parameter.requires_grad and parameter.grad is not None
    }


def _loss(peft: Any, micro: MicroBatch) -> Tensor:
    """Row by row, so that no row sees another."""
    total = torch.zeros(())
    for tokens, labels in zip(micro.tokens, micro.labels, strict=True):
        logits = peft(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0]
        total = total + F.cross_entropy(
            logits[:-1], torch.from_numpy(labels)[1:], ignore_index=IGNORED, reduction="sum"
        )
    return total / micro.n_labels


@pytest.mark.parametrize("name", KINDS)
def test_peft_loads_the_file_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = fused()
    adapter = shaken(model, name, dropout=0.1)
    peft = in_peft(model, adapter, tmp_path / "a", trainable=False)
    mine, theirs = adapter.slab.named_parts(), _named(peft, of_grads=False)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    config = peft.peft_config["default"]
    assert config.base_model_name_or_path == "the/base"
    assert (config.r, config.lora_alpha) == (adapter.config.rank, adapter.config.alpha)
    assert config.lora_dropout == 0.1
    part = Part(adapter=adapter, batch=batch((9, 4)))
    for row, logits in zip(part.batch.tokens, model.logits([part])[0], strict=True):
        with torch.no_grad():
            expected = peft(input_ids=torch.from_numpy(row)[None], use_cache=False).logits[0]
        assert float((logits - expected).abs().max()) <= 1e-6 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_pefts(name: str, tmp_path: Path) -> None:
    model = fused()
    adapter = shaken(model, name)
    peft = in_peft(model, adapter, tmp_path / "a")
    micro = batch((9, 4, 13), 3, prompt=2)
    loss = _loss(peft, micro)
    loss.backward()  # type: ignore[no-untyped-call]
    (outcome,) = model.step([Part(adapter=adapter, batch=micro)])
    assert outcome.loss == pytest.approx(loss.item(), rel=1e-6)
    assert worst(grads(adapter), _named(peft, of_grads=True)) < 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_curve_is_pefts(name: str, tmp_path: Path) -> None:
    """20 steps of AdamW, same rows, from a fresh adapter, no clipping.

    1e-6 relative at every step.
    """
    model = fused()
    adapter = model.new_adapter("j", *case(name))
    peft = in_peft(model, adapter, tmp_path / "a")
    theirs = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=5e-4)
    parameter = torch.nn.Parameter(adapter.slab.params)
    mine = torch.optim.AdamW([parameter], lr=5e-4)
    losses = []
    for step in range(20):
        micro = batch((11, 7), step % 3, step=step, prompt=1)
        theirs.zero_grad()
        loss = _loss(peft, micro)
        loss.backward()  # type: ignore[no-untyped-call]
        theirs.step()
        (outcome,) = model.step([Part(adapter=adapter, batch=micro)])
        parameter.grad = adapter.slab.grads
        mine.step()
        adapter.slab.version += 1
        adapter.slab.grads.zero_()
        assert outcome.loss == pytest.approx(loss.item(), rel=1e-6), step
        losses.append(outcome.loss)
    assert losses[18] < losses[0] - 1e-3


def test_a_file_written_by_peft_is_read(tmp_path: Path) -> None:
    model = fused()
    first = shaken(model, "dora", dropout=0.1)
    peft = in_peft(model, first, tmp_path / "ours")
    peft.save_pretrained(str(tmp_path / "theirs"), save_embedding_layers=False)
    again = load_adapter(model, tmp_path / "theirs", "again")
    ours = load_adapter(model, tmp_path / "ours", "ours")
    assert set(again.config.target_modules) == set(ours.config.target_modules)  # PEFT keeps a set
    assert replace(again.config, target_modules="all-linear") == replace(ours.config, target_modules="all-linear")
    mine, theirs = first.slab.named_parts(), again.slab.named_parts()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def _row_logits(model: FusedModel, folder: Path) -> Tensor:
    part = Part(adapter=load_adapter(model, folder, "j"), batch=batch((9,)))
    return model.logits([part])[0][0]


@pytest.mark.filterwarnings("ignore:.*changes the base weights:UserWarning")
@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal", "gaussian"])
def test_an_adapter_that_changed_its_base_is_refused_and_its_conversion_is_the_same_function(
    init: str, tmp_path: Path
) -> None:
    """The way that the refusal names is tried here. What only chose the first values is read."""
    model = fused()
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=init, lora_dropout=0.0
    )
    peft = get_peft_model(plain_model(model.base), config)
    peft.save_pretrained(str(tmp_path / "before"))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
        expected = peft.eval()(input_ids=torch.from_numpy(batch((9,)).tokens[0])[None], use_cache=False).logits[0]
    peft.save_pretrained(str(tmp_path / "after"))
    folder = tmp_path / "after"
    if init in ("pissa", "olora"):
        with pytest.raises(InvalidInputError, match="path_initial_model_for_weight_conversion"):
            load_adapter(model, folder, "j")
        folder = tmp_path / "converted"
        peft.save_pretrained(str(folder), path_initial_model_for_weight_conversion=str(tmp_path / "before"))
    torch.testing.assert_close(_row_logits(model, folder), expected, rtol=0, atol=1e-4)


def test_all_linear_as_peft_writes_it_is_read(tmp_path: Path) -> None:
    """PEFT writes the path of every linear."""
    model = fused()
    peft = get_peft_model(
        plain_model(model.base),
        LoraConfig(r=4, target_modules="all-linear", exclude_modules=["k_proj"], lora_dropout=0.0),
    )
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
        expected = peft.eval()(input_ids=torch.from_numpy(batch((9,)).tokens[0])[None], use_cache=False).logits[0]
    peft.save_pretrained(str(tmp_path / "a"))
    assert len(load_adapter(model, tmp_path / "a", "j").config.target_modules) == 6
    torch.testing.assert_close(_row_logits(model, tmp_path / "a"), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_a_file_of_peft_leaves_out_is_as_peft_has_it(dtype: torch.dtype, tmp_path: Path) -> None:
    """Such a file is old, or written by hand; ours have other defaults. Halves become float32."""
    model = fused()
    peft = get_peft_model(plain_model(model.base), LoraConfig(r=8, target_modules=["v_proj"], init_lora_weights=False))
    peft.save_pretrained(str(tmp_path))
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    file = tmp_path / "adapter_config.json"
    document = json.loads(file.read_text())
    for key in ("r", "lora_alpha", "lora_dropout"):
        del document[key]
    file.write_text(json.dumps(document))
    again = PeftModel.from_pretrained(plain_model(model.base), str(tmp_path)).eval()
    with torch.no_grad():
        expected = again(input_ids=torch.from_numpy(batch((9,)).tokens[0])[None], use_cache=False).logits[0]
    torch.testing.assert_close(_row_logits(model, tmp_path), expected, rtol=0, atol=1e-4)
    config = load_adapter(model, tmp_path, "j").config
    assert (config.rank, config.alpha, config.dropout) == (8, 8, 0.0)

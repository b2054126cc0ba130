"""Adapter files: bits round-trip, loading is strict, writing is whole or absent.

Nothing is followed or overwritten.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loramux_runtime.fused.base_model import load_base
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import Part
from loramux_runtime.jobs import adapter_files
from loramux_runtime.jobs.adapter_files import CONFIG, TENSORS, load_adapter, save_adapter
from loramux_traces.errors import InvalidInputError, StateError

from .matrix import NAMES, batch, build, fused, shaken


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_adapter(shaken(fused(), "mixlora"), tmp_path / "a", "the/base")
    return tmp_path / "a"


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("name", NAMES)
def test_bits_and_losses_round_trip(name: str, dtype: str, tmp_path: Path) -> None:
    model = fused(dtype)
    adapter = shaken(model, name, dropout=0.2, seed=7, job="one")
    save_adapter(adapter, tmp_path / "deep" / "a", "the/base")
    again = load_adapter(model, tmp_path / "deep" / "a", "one", seed=7)
    assert (again.method, again.seed, again.structure) == (adapter.method, 7, adapter.structure)
    assert torch.equal(again.slab.params, adapter.slab.params)
    micro = batch((9, 3), 2, step=4)
    first, second = (model.step([Part(adapter=one, batch=micro)]) for one in (adapter, again))
    assert first == second and torch.equal(again.slab.grads, adapter.slab.grads)


def test_the_file_holds_no_padding_and_the_names_of_the_specification(saved: Path) -> None:
    tensors = load_file(saved / TENSORS)
    assert tensors["mixlora.layers.1.mlp.moe_gate.weight"].shape == (4, 24)
    assert tensors["mixlora.layers.0.mlp.down_proj.experts.3.lora_A.weight"].shape == (3, 40)
    assert tensors["mixlora.layers.0.mlp.down_proj.experts.3.lora_B.weight"].shape == (24, 3)
    assert tensors["mixlora.layers.0.self_attn.q_proj.lora_A.weight"].shape == (2, 24)
    assert len(tensors) == 2 * (1 + 3 * 4 * 2 + 4 * 2)
    with safe_open(saved / TENSORS, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    document = json.loads((saved / CONFIG).read_text())
    assert (document["routing_strategy"], document["num_experts"], document["top_k"]) == ("mixlora", 4, 2)
    assert document["base_model_name_or_path"] == "the/base"
    assert sorted(os.listdir(saved)) == [CONFIG, TENSORS] and os.listdir(saved.parent) == ["a"]


@pytest.mark.parametrize("name", ["mola", "loramoe", "dynmole"])
def test_names_of_the_plug_in_methods(name: str, tmp_path: Path) -> None:
    save_adapter(shaken(fused(), name), tmp_path / "a", "b")
    tensors = load_file(tmp_path / "a" / TENSORS)
    assert f"{name}.layers.0.mlp.down_proj.moe_gate.weight" in tensors
    assert tensors[f"{name}.layers.0.mlp.up_proj.experts.1.lora_B.weight"].shape[0] == 40


GATE = "mixlora.layers.0.mlp.moe_gate.weight"


def _tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        change(tensors)
        save_file(tensors, folder / TENSORS)

    return apply


def _cut(share: float) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = (folder / TENSORS).read_bytes()
        (folder / TENSORS).write_bytes(data[: int(len(data) * share)])

    return apply


def _link(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return apply


def _grow(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (_tensors(lambda t: t.pop(GATE)), rf"column {GATE}: tensor is missing"),
    "surplus": (_tensors(lambda t: t.update(x=torch.ones(1))), "column x: tensor is surplus"),
    "shape": (_tensors(lambda t: t.update({GATE: torch.ones(4, 23)})), rf"{GATE}: has shape \(4, 23\), must have \(4, 24\)"),
    "dtype": (_tensors(lambda t: t.update({GATE: t[GATE].double()})), rf"{GATE}: has dtype F64, must have F32"),
    "nan": (_tensors(lambda t: t[GATE].fill_(float("nan"))), rf"column {GATE}: holds NaN or infinite"),
    "infinite": (_tensors(lambda t: t[GATE].fill_(float("inf"))), rf"column {GATE}: holds NaN or infinite"),
    "whole numbers": (_tensors(lambda t: t.update({GATE: t[GATE].int()})), rf"{GATE}: has dtype I32, must have F32"),
    "bin": (lambda f: (f / TENSORS).rename(f / "adapter_model.bin"), "adapter_model.bin: pickled tensors are code"),
    "half": (_cut(0.5), "not a whole safetensors file"),
    "header": (_cut(0.01), "not a whole safetensors file"),
    "empty": (_cut(0.0), "not a whole safetensors file"),
    "garbage": (lambda f: (f / TENSORS).write_bytes(os.urandom(4096)), "not a whole safetensors file"),
    "pickle": (lambda f: torch.save({}, f / TENSORS), "not a whole safetensors file"),
    "huge": (_grow(TENSORS, 1 << 36), "bytes, expected at most"),
    "huge-config": (_grow(CONFIG, 1 << 36), "bytes, expected at most"),
    "no-tensors": (lambda f: (f / TENSORS).unlink(), "cannot be read"),
    "no-config": (lambda f: (f / CONFIG).unlink(), "cannot be read"),
    "link": (_link(TENSORS), "no symlink"),
    "link-config": (_link(CONFIG), "no symlink"),
    "folder": (lambda f: ((f / TENSORS).unlink(), (f / TENSORS).mkdir()), "regular file"),
    "fifo": (lambda f: ((f / TENSORS).unlink(), os.mkfifo(f / TENSORS)), "regular file"),
    "config": (lambda f: (f / CONFIG).write_text("{"), "JSON"),
    "greedy": (
        lambda f: (f / CONFIG).write_text(
            (f / CONFIG).read_text().replace('"num_experts": 4', '"num_experts": 999').replace('"r": 3', '"r": 4096')
        ),
        "bytes, but adapter_config.json asks for",
    ),
    "other-experts": (
        lambda f: (f / CONFIG).write_text((f / CONFIG).read_text().replace('"num_experts": 4', '"num_experts": 5')),
        "experts.4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_refused_and_says_why(fault: str, saved: Path) -> None:
    change, words = FAULTS[fault]
    change(saved)
    with pytest.raises(InvalidInputError, match=words):
        load_adapter(fused(), saved, "j")


def test_all_that_is_wrong_is_said_up_to_a_cap(saved: Path) -> None:
    _tensors(lambda t: [t.pop(key) for key in sorted(t)[:30]])(saved)
    with pytest.raises(InvalidInputError) as caught:
        load_adapter(fused(), saved, "j")
    assert (len(caught.value.problems), caught.value.total) == (20, 30)


def test_a_linked_or_missing_folder_is_refused(saved: Path) -> None:
    (saved.parent / "link").symlink_to(saved)
    for path in (saved.parent / "link", saved.parent / "none", saved / CONFIG):
        with pytest.raises(InvalidInputError, match="must be a folder"):
            load_adapter(fused(), path, "j")


def test_a_base_that_is_here_and_another_model_is_refused(tmp_path: Path) -> None:
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    for seed, name in enumerate(("one", "other")):
        torch.manual_seed(seed)
        build("llama", initializer_range=0.1 + seed / 10).hf.save_pretrained(tmp_path / name)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    model = FusedModel(load_base(tmp_path / "one", dtype="fp32"))
    for base, fits in (("one", True), ("copy", True), ("other", False), ("org/name", True), ("gone", True), ("", True)):
        save_adapter(shaken(model, "lora"), tmp_path / "a", str(tmp_path / base) if base else "", overwrite=True)
        if fits:
            load_adapter(model, tmp_path / "a", "j")
        else:
            with pytest.raises(InvalidInputError, match=r"column base_model_name_or_path: was trained on .*/other"):
                load_adapter(model, tmp_path / "a", "j")


def test_many_experts_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    model = FusedModel(build("llama", num_hidden_layers=8))
    save_adapter(shaken(model, "mola"), tmp_path / "a", "b")
    document = json.loads((tmp_path / "a" / CONFIG).read_text())
    (tmp_path / "a" / CONFIG).write_text(json.dumps({**document, "num_experts": 1024}))
    with pytest.raises(InvalidInputError, match="asks for at least 16384 tensors"):
        load_adapter(model, tmp_path / "a", "j")


def test_another_base_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="has shape"):
        load_adapter(FusedModel(build("llama", hidden_size=32)), saved, "j")
    save_adapter(shaken(fused(), "rslora"), tmp_path / "qv", "b")
    with pytest.raises(InvalidInputError, match="target_modules: 'q_proj'; is no linear of the base model"):
        load_adapter(FusedModel(build("phi3")), tmp_path / "qv", "j")


def test_nothing_is_overwritten_unless_asked(saved: Path) -> None:
    before = (saved / TENSORS).read_bytes()
    other = shaken(fused(), "lora")
    with pytest.raises(StateError, match="exists already"):
        save_adapter(other, saved, "b")
    assert (saved / TENSORS).read_bytes() == before
    save_adapter(other, saved, "b", overwrite=True)
    assert torch.equal(load_adapter(fused(), saved, "j").slab.params, other.slab.params)
    assert os.listdir(saved.parent) == ["a"]


def test_only_an_adapter_is_overwritten(saved: Path) -> None:
    other = shaken(fused(), "lora")
    (saved / "thesis.tex").write_text("years of work")
    with pytest.raises(StateError, match=r"thesis\.tex"):
        save_adapter(other, saved, "b", overwrite=True)
    (saved.parent / "link").symlink_to(saved)
    with pytest.raises(StateError, match="symlink"):
        save_adapter(other, saved.parent / "link", "b", overwrite=True)
    (saved.parent / "file").write_text("x")
    with pytest.raises(StateError, match="not a folder"):
        save_adapter(other, saved.parent / "file", "b", overwrite=True)
    assert (saved / "thesis.tex").read_text() == "years of work" and (saved.parent / "file").read_text() == "x"


@pytest.mark.parametrize("fails", ["save_file", "sync", "json_text"])
def test_a_failed_write_leaves_what_was_there(fails: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (saved / TENSORS).read_bytes(), (saved / CONFIG).read_bytes()

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapter_files, fails, full)
    for target in (saved, saved.parent / "new"):
        with pytest.raises(StateError, match="No space left"):
            save_adapter(shaken(fused(), "lora"), target, "b", overwrite=True)
    assert ((saved / TENSORS).read_bytes(), (saved / CONFIG).read_bytes()) == before
    assert os.listdir(saved.parent) == ["a"]


def test_a_failed_rename_puts_the_former_back(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename
    before = (saved / TENSORS).read_bytes()

    def stubborn(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stubborn)
    with pytest.raises(StateError, match="Input/output"):
        save_adapter(shaken(fused(), "lora"), saved, "b", overwrite=True)
    assert (saved / TENSORS).read_bytes() == before and os.listdir(saved.parent) == ["a"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateError, match="cannot be written"):
        save_adapter(shaken(fused(), "lora"), tmp_path / "file" / "a", "b")


def test_equal_adapters_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_adapter(shaken(fused(), "dora"), tmp_path / name, "base")
    for file in (CONFIG, TENSORS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()

"""The oracle's cases.

Every *.json with its safetensors in the folder that LORAMUX_ORACLE_DIR names.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from loramux_runtime.fused.base_model import BaseModel, load_base
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import MicroBatch, Part
from loramux_runtime.jobs.adapter_config import config_of, known_keys

from .matrix import with_dropout

FOLDER = Path(os.environ.get("LORAMUX_ORACLE_DIR") or Path(__file__).parents[1] / "oracle").resolve()


@dataclass(frozen=True)
class OracleCase:
    """One configuration with the authors' numbers."""

    name: str
    path: Path
    base: Path
    document: dict[str, Any]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.path.with_suffix(".safetensors"))

    def part(self, model: FusedModel, tensors: dict[str, Tensor]) -> Part:
        """The case as a job: its adapter, and its rows without pads."""
        given = {key: value for key, value in self.document.items() if value is not None}
        method, _ = config_of(
            {key: given[key] for key in ("method", "routing_strategy", "peft_type") if key in given}, ""
        )
        _, config = config_of({key: given[key] for key in known_keys(method) if key in given}, str(self.path))
        # made without dropout
        adapter = model.new_adapter(self.name, method, with_dropout(config, 0.0))
        adapter.slab.load({k.removeprefix("weight/"): v for k, v in tensors.items() if k.startswith("weight/")})
        valid = tensors["attention_mask"].bool()
        cut = [
            tuple(row[keep].numpy().astype("int64") for row, keep in zip(tensors[key], valid, strict=True))
            for key in ("input_ids", "labels")
        ]
        return Part(adapter=adapter, batch=MicroBatch(tokens=cut[0], labels=cut[1], samples=tuple(range(len(cut[0])))))


def _base_of(path: Path, document: dict[str, Any]) -> Path:
    """The base model of a case.

    What its JSON names, else the nearest folder `base`, else the only or best `base*`.
    """
    folders = [path.parent, *(p for p in path.parents[1:] if p == FOLDER or FOLDER in p.parents)]
    for key in ("base", "base_dir", "base_model", "base_model_name_or_path"):
        named = document.get(key)
        for folder in folders if isinstance(named, str) and named else []:
            if (folder / named / "config.json").is_file():
                return folder / named
    for folder in folders:
        found = sorted(p.parent for p in folder.glob("*base*/config.json"))
        named_alike = [p for p in found if p.name.replace("base", "").strip("-_.") in path.stem.split(".", 1)[0]]
        for choice in ([p for p in named_alike if p.name != "base"], [p for p in found if p.name == "base"], found):
            if len(choice) == 1:
                return choice[0]
    raise AssertionError(f"{path}: no base model found for it (folder `base` beside it, or key `base`)")


@cache
def oracle_cases() -> tuple[OracleCase, ...]:
    """All cases; AssertionError where there is none."""
    found = []
    for path in sorted(FOLDER.rglob("*.json")):
        if path.with_suffix(".safetensors").is_file() and not (path.parent / "config.json").is_file():
            document = json.loads(path.read_text(encoding="utf-8"))
            name = path.relative_to(FOLDER).with_suffix("").as_posix().replace("/", "-")
            found.append(OracleCase(name, path, _base_of(path, document), document))
    assert found, f"{FOLDER}: no oracle cases"
    return tuple(found)


@cache
def oracle_base(folder: Path) -> BaseModel:
    """A base of the oracle in float32."""
    return load_base(folder, dtype="fp32")


def relative(mine: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((mine - theirs).abs().max()) / max(1e-30, float(theirs.abs().max()))


def check(case: OracleCase, part: Part, tensors: dict[str, Tensor], outcome: Any, logits: list[Tensor]) -> None:
    """Loss, auxiliary loss, logits and gradients are the authors'."""
    tolerance = 1e-4
    document = case.document
    assert abs(outcome.loss - document["loss"]) <= tolerance * abs(document["loss"])
    aux = document.get("aux_loss")
    assert abs(outcome.aux_loss - (aux or 0.0)) <= tolerance * abs(aux or 0.0)
    valid = tensors["attention_mask"].bool()
    for row, keep, mine in zip(tensors["logits"], valid, logits, strict=True):
        assert relative(mine, row[keep]) <= tolerance
    theirs = {k.removeprefix("grad/"): v for k, v in tensors.items() if k.startswith("grad/")}
    mine_all = part.adapter.slab.named_grads()
    assert mine_all.keys() == theirs.keys()
    largest = max(float(value.abs().max()) for value in theirs.values())
    for name, value in theirs.items():
        assert float((mine_all[name] - value).abs().max()) <= tolerance * largest, name
    assert torch.isfinite(part.adapter.slab.grads).all()

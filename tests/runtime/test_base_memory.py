"""A base that is loaded no longer depends on its files: somebody may overwrite or cut them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
import transformers

from loramux_runtime.fused.base_model import load_base

ORACLE = Path(__file__).parents[1] / "oracle" / "base"


def test_the_weights_are_not_the_pages_of_their_files(tmp_path: Path) -> None:
    """As transformers leaves them on CPU, where the file has the wanted dtype."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    folder = Path(shutil.copytree(ORACLE, tmp_path / "base"))
    base = load_base(folder, dtype="fp32")
    before = {name: tensor.clone() for name, tensor in base.hf.state_dict().items()}
    size = (folder / "model.safetensors").stat().st_size
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(size // 4)
        file.write(b"\1" * (size - size // 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.hf.state_dict().items())
    # a page of the file would be a SIGBUS now
    os.truncate(folder / "model.safetensors", 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.hf.state_dict().items())

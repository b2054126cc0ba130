"""An adapter file is a folder with `adapter_config.json` and `adapter_model.safetensors`.

LoRA, rsLoRA and DoRA are PEFT's own files, which `PeftModel.from_pretrained` loads bit for bit;
mixtures have the keys that their slabs name. Ranks are stored without padding. Reading is strict
(every missing or surplus tensor, wrong shape or dtype is named), never unpickles and follows no
symlink; writing is whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from loramux_profiles.widths import experts_by_layer
from loramux_runtime.fused.adapters.base import Adapter
from loramux_runtime.fused.adapters.methods import METHODS
from loramux_runtime.fused.blame import blame
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.slab import SlabLayout
from loramux_runtime.jobs.adapter_config import parse_config, write_config
from loramux_runtime.jobs.fingerprint import fingerprint
from loramux_traces.errors import InvalidInputError, Problem, StateError
from loramux_traces.filesafe import json_text, sync

CONFIG: Final = "adapter_config.json"
TENSORS: Final = "adapter_model.safetensors"
PICKLED: Final = "adapter_model.bin"
MAX_CONFIG_BYTES: Final = 1 << 20
MAX_PROBLEMS: Final = 20
_FEW_TENSORS: Final = 4096
_BYTES_OF_A_NAME: Final = 64
"""A tensor takes more than this in the header of a safetensors file."""
_DTYPES: Final = {torch.float32: "F32", torch.float64: "F64"}
_HALVES: Final = ("BF16", "F16")


def save_adapter(adapter: Adapter, folder: str | Path, base_name: str, overwrite: bool = False) -> None:
    """Write an adapter into `folder`, which appears whole or not at all.

    Raises StateError where the folder exists (with `overwrite`: where it holds anything but an
    adapter), is a symlink, or cannot be written. `base_name` is recorded as
    `base_model_name_or_path`.
    """
    folder = Path(os.path.abspath(folder))
    _may_write(folder, overwrite)
    modules = tuple(dict.fromkeys(name for _, name in adapter.plans))
    document = write_config(adapter.method.name, adapter.config, modules, base_name)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    former = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        (temporary / CONFIG).write_text(json_text(document, indent=2) + "\n", encoding="utf-8")
        tensors = {name: view.detach().cpu().contiguous() for name, view in adapter.slab.named_parts().items()}
        save_file(tensors, temporary / TENSORS, metadata={"format": "pt"})
        # safetensors leaves mode 0600, so the file gets that of the configuration
        (temporary / TENSORS).chmod((temporary / CONFIG).stat().st_mode & 0o777)
        for path in (temporary / CONFIG, temporary / TENSORS, temporary):
            sync(path)
        if folder.exists():
            folder.rename(former)
        try:
            temporary.rename(folder)
        except OSError:
            if former.exists():
                former.rename(folder)
            raise
        sync(folder.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StateError(f"{folder}: the adapter cannot be written ({reason})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(former, ignore_errors=True)


def read_adapter_config(path: str | Path) -> tuple[str, Any]:
    """Read (method, configuration) from an `adapter_config.json` or its folder.

    It reads PEFT's files, ours, and those of the authors' tools. Keys that are missing take the
    method's defaults, of LoRA those of PEFT; a key that would change what the adapter computes and
    is not known is refused.

    Raises InvalidInputError where it is no such file.
    """
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        path = path / CONFIG
    _plain_file(path, MAX_CONFIG_BYTES)
    try:
        return parse_config(path.read_bytes(), str(path))
    except OSError as error:
        raise _invalid([(path, "", f"cannot be read ({error.strerror})")]) from error


def load_adapter(model: FusedModel, folder: str | Path, job_id: str, seed: int = 0) -> Adapter:
    """Load the adapter of a folder, for training on or for evaluation.

    Raises InvalidInputError, which says everything that is wrong.
    """
    folder = Path(folder)
    if folder.is_symlink() or not folder.is_dir():
        raise _invalid([(folder, "", "must be a folder (no symlink)")])
    if (folder / PICKLED).exists() and not (folder / TENSORS).exists():
        raise _invalid([(folder / PICKLED, "", f"pickled tensors are code and are not loaded: save it as {TENSORS}")])
    method, config = read_adapter_config(folder)
    _same_base(folder, model.base.name)
    try:
        _enough_tensors(folder / TENSORS, config, model.base.sites.layers)
        _plausible(folder / TENSORS, SlabLayout(METHODS[method].specs(config, model.base.sites)))
        adapter = model.new_adapter(job_id, method, config, seed=seed)
    except ValueError as error:
        raise _invalid([(folder / CONFIG, "", f"does not fit the base model: {error}")]) from error
    adapter.slab.load(read_tensors(folder / TENSORS, adapter.slab.named_parts(), widen=True))
    return adapter


def _same_base(folder: Path, base_name: str) -> None:
    """Refuse an adapter whose base is a folder of this machine that holds another model.

    A name from the Hub, or a folder that is not here any more, says nothing that can be checked;
    then the shapes of the tensors decide.
    """
    named = json.loads((folder / CONFIG).read_bytes()).get("base_model_name_or_path")
    if not isinstance(named, str) or not 0 < len(named) < 4096 or "\0" in named:
        return
    theirs, ours = Path(named), Path(base_name)
    try:
        if not all((path / "config.json").is_file() for path in (theirs, ours)) or theirs.samefile(ours):
            return
        other = fingerprint(theirs) != fingerprint(ours)
    except (OSError, StateError):
        return
    if other:
        text = f"was trained on {named}, which is another model than {base_name}"
        raise _invalid([(folder / CONFIG, "base_model_name_or_path", text)])


def _enough_tensors(path: Path, config: Any, layers: int) -> None:
    """Refuse a configuration with far more experts than the file can name.

    This comes before the tensors are listed, two for each expert of a layer.
    """
    tensors = 2 * sum(experts_by_layer(getattr(config, "num_experts", 1), layers))
    if tensors > _FEW_TENSORS and _BYTES_OF_A_NAME * tensors > _size(path):
        raise _invalid([(path, "", f"has {_size(path)} bytes, but {CONFIG} asks for at least {tensors} tensors")])


def _size(path: Path) -> int:
    _plain_file(path, 1 << 62)
    return path.lstat().st_size


def _plausible(path: Path, layout: SlabLayout) -> None:
    """Refuse a configuration that asks for far more memory than the file can fill.

    This comes before the memory is taken.
    """
    size = _size(path)
    if 4 * layout.size > 64 * size + (1 << 26):
        raise _invalid([(path, "", f"has {size} bytes, but {CONFIG} asks for {4 * layout.size}")])


def read_tensors(path: Path, wanted: Mapping[str, Tensor], *, widen: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file with exactly these names, shapes and dtypes.

    With `widen`, half-precision numbers may stand for float32; each is the same number there.
    Raises InvalidInputError, which names the others, and those that hold NaN.
    """
    _plain_file(path, sum(t.numel() * t.element_size() for t in wanted.values()) + 1024 * len(wanted) + (1 << 20))
    with blame(path, "not a whole safetensors file"), safe_open(path, framework="pt") as file:
        problems = _differences(path, file, wanted, _HALVES if widen else ())
        if problems:
            raise _invalid(problems)
        found = {name: file.get_tensor(name).to(tensor.dtype) for name, tensor in wanted.items()}
    bad = [(path, name, "holds NaN or infinite values") for name in wanted if not torch.isfinite(found[name]).all()]
    if bad:
        raise _invalid(bad)
    return found


def _differences(
    path: Path, file: Any, wanted: Mapping[str, Tensor], also: Sequence[str]
) -> list[tuple[Path, str, str]]:
    there = set(file.keys())
    problems = [(path, name, "tensor is missing") for name in wanted if name not in there]
    problems += [(path, name, "tensor is surplus") for name in sorted(there - wanted.keys())]
    for name in sorted(there & wanted.keys()):
        piece = file.get_slice(name)
        shape, dtype = tuple(piece.get_shape()), piece.get_dtype()
        expected = _DTYPES[wanted[name].dtype]
        if shape != tuple(wanted[name].shape):
            problems.append((path, name, f"has shape {shape}, must have {tuple(wanted[name].shape)}"))
        elif dtype != expected and not (expected == "F32" and dtype in also):
            problems.append((path, name, f"has dtype {dtype}, must have {expected}"))
    return problems


def _invalid(problems: list[tuple[Path, str, str]]) -> InvalidInputError:
    found = [Problem(file=str(p), line=0, column=key, value="", allowed=text) for p, key, text in problems]
    return InvalidInputError(found[:MAX_PROBLEMS], total=len(found))


def _plain_file(path: Path, most: int) -> None:
    try:
        about = path.lstat()
    except OSError as error:
        raise _invalid([(path, "", f"cannot be read ({error.strerror})")]) from error
    if not stat.S_ISREG(about.st_mode):
        raise _invalid([(path, "", "must be a regular file (no symlink)")])
    if about.st_size > most:
        raise _invalid([(path, "", f"has {about.st_size} bytes, expected at most {most}")])


def _may_write(folder: Path, overwrite: bool) -> None:
    if folder.is_symlink():
        raise StateError(f"{folder}: is a symlink, which is not written through")
    if not folder.exists():
        return
    if not overwrite:
        raise StateError(f"{folder}: exists already")
    try:
        strangers = [p.name for p in folder.iterdir() if p.name not in (CONFIG, TENSORS) or p.is_symlink()]
    except OSError as error:
        raise StateError(f"{folder}: is not a folder that can be replaced ({error.strerror})") from error
    if strangers:
        raise StateError(f"{folder}: holds {strangers[0]}, which is no part of an adapter; not replaced")

"""The weights of a base are looked over before any of them is read.

The headers of the safetensors files say what is there: a missing shard, a quantised tensor, or a
configuration that asks for another size is found here, before memory is taken for it.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open

from loramux_profiles.datafiles import read_json
from loramux_runtime.fused.base_config import invalid
from loramux_runtime.fused.blame import blame

WHOLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
MAX_INDEX_BYTES: Final = 16 << 20
MAX_HEADER_BYTES: Final = 16 << 20
MAX_SHARDS: Final = 4096
DTYPES: Final = ("F64", "F32", "F16", "BF16")
_LAYER: Final = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_NOT_LEARNED: Final = "rotary_emb.inv_freq"
"""End of the names that old checkpoints have and that is worked out again."""

Shapes = dict[str, tuple[int, ...]]


def check_weights(folder: Path, config: Any) -> Shapes:
    """Hold that the safetensors files of a folder can be the weights of this configuration.

    Returns the shapes of their tensors. Raises InvalidInputError, which names file and tensor.
    """
    shapes: Shapes = {}
    for file, expected in _files(folder):
        found = _header(file)
        missing = sorted(set(expected) - found.keys())
        if missing:
            raise invalid(file, "the index says that this file has the tensor", missing[0])
        shapes |= found
    _compare(shapes, config, folder / "config.json")
    return shapes


def check_tensors(model: Any, shapes: Shapes, folder: Path) -> None:
    """Hold the tensors of a folder against those of the model's outline, one by one.

    Shapes are compared where a name is in both. Missing names are looked for only where all of the
    files' names are the model's own: transformers knows other names of some tensors, and its
    loader has the last word. Raises InvalidInputError, which names the first wrong tensor.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in sorted(shapes.items()):
        if name in wanted and shape != wanted[name]:
            raise invalid(folder, f"the tensor has shape {shape}, config.json asks for {wanted[name]}", name)
    if all(name in wanted or name.endswith(_NOT_LEARNED) for name in shapes):
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        missing = sorted(wanted.keys() - shapes.keys() - tied)
        if missing:
            raise invalid(folder, f"the weights do not have this tensor (nor {len(missing) - 1} others)", missing[0])


def check_finite(model: Any, folder: Path) -> None:
    """Raise InvalidInputError where a loaded weight is NaN or infinite."""
    names, ends = [], []
    for name, parameter in model.named_parameters():
        if parameter.numel():
            names.append(name)
            ends.append(torch.stack(torch.aminmax(parameter.detach())).float())
    bad = torch.nonzero(~torch.isfinite(torch.stack(ends)).all(1)).flatten().tolist() if ends else []
    if bad:
        more = f" (so do {len(bad) - 1} others)" if len(bad) > 1 else ""
        raise invalid(folder, f"holds NaN or infinite values{more}: nothing can be trained on it", names[bad[0]])


def _files(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each file of weights and the tensors that the index expects there."""
    if (folder / WHOLE).exists() or (folder / WHOLE).is_symlink():
        yield folder / WHOLE, []
        return
    index = folder / INDEX
    if not index.exists():
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        hint = f" ({others[0][:80]} is there, without {INDEX})" if others else ""
        raise invalid(folder, f"no .safetensors weights: no {WHOLE}{hint}; pickled ones are code and are not loaded")
    table = read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise invalid(index, "must say for each tensor in which file it is", "weight_map")
    shards: dict[str, list[str]] = {}
    for tensor, name in table.items():
        plain = isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name
        if not plain:
            raise invalid(index, "must be the name of a .safetensors file in this folder", f"weight_map.{tensor}", name)
        shards.setdefault(name, []).append(tensor)
    if len(shards) > MAX_SHARDS:
        raise invalid(index, f"must name at most {MAX_SHARDS} files", "weight_map")
    for name in sorted(shards):
        yield folder / name, shards[name]


def _header(file: Path) -> Shapes:
    """Return the shapes of a file's tensors.

    Raises InvalidInputError where it is no safetensors file with floating-point weights.
    """
    try:
        about = file.stat()  # links are followed, as the cache of the Hub has them
        if not stat.S_ISREG(about.st_mode):
            raise invalid(file, "must be a regular file")
        with file.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise invalid(file, f"weights cannot be read ({error.strerror})") from error
    if start.startswith(b"version https://git-lfs"):
        raise invalid(file, "is a pointer of git-lfs, not the weights: run `git lfs pull` in the folder")
    size = int.from_bytes(start[:8], "little")
    if len(start) < 8 or size > min(MAX_HEADER_BYTES, about.st_size - 8):
        raise invalid(file, "not a whole safetensors file (its header is cut off or too large)")
    shapes: Shapes = {}
    with blame(file), safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - it is no mapping
            piece = opened.get_slice(name)
            kind = piece.get_dtype()
            if kind not in DTYPES and not name.endswith(_NOT_LEARNED):
                allowed = f"has dtype {kind}, must be one of {', '.join(DTYPES)} (quantised weights are not supported)"
                raise invalid(file, allowed, name)
            shapes[name] = tuple(piece.get_shape())
    return shapes


def _compare(shapes: Shapes, config: Any, file: Path) -> None:
    """Hold the declared size against what the files hold, before anything of that size is made."""
    layers = 1 + max((int(found[1]) for name in shapes if (found := _LAYER.search(name))), default=-1)
    if layers != config.num_hidden_layers:
        allowed = f"must be the number of layers in the weights, {layers}"
        raise invalid(file, allowed, "num_hidden_layers", config.num_hidden_layers)
    table = (config.vocab_size, config.hidden_size)
    for name, shape in shapes.items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")) and shape != table:
            raise invalid(file, f"vocab_size and hidden_size are {table}, but {name} has shape {shape}", "vocab_size")
    declared, held = core_parameters(config), sum(math.prod(shape) for shape in shapes.values())
    if declared > held:
        allowed = f"declares {declared} parameters in linears and embeddings, but the weights hold {held} in all"
        raise invalid(file, allowed)


def core_parameters(config: Any) -> int:
    """Return the parameters of the layers' linears and of one embedding, norms and biases aside."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    pairs = config.num_key_value_heads or heads
    attention = 2 * hidden * size * (heads + pairs)
    layer = attention + 3 * hidden * config.intermediate_size
    return int(config.num_hidden_layers * layer + config.vocab_size * hidden)

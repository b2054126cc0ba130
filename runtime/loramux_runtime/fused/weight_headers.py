"""This module reads the headers of a model's weights, and holds them against its config.json.

A header is a few KB, so that a folder of 15 GB is found wrong before any of it is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from loramux_runtime.fused.base_model import BaseModel
from loramux_traces.errors import InvalidInputError, Problem

MOST_PROBLEMS: Final = 20
_ROTARY: Final = "rotary_emb.inv_freq"


def check_headers(folder: Path, base: BaseModel) -> None:
    """Raise InvalidInputError where the weights of a folder cannot be those of its outline.

    Shapes are compared where a name is in both. Names are looked at only where all of those in the
    files are the model's own: transformers knows other names of some of them, and its loader has
    the last word.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in base.hf.state_dict().items()}
    problems: list[Problem] = []
    found: set[str] = set()
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        problems.append(_problem(folder, "", "no .safetensors weights (pickled ones are code and are not loaded)"))
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # a safe_open is no mapping
                    shape = tuple(file.get_slice(name).get_shape())
                    if name in wanted and shape != wanted[name]:
                        problems.append(_problem(path, name, f"has shape {shape}, config.json asks for {wanted[name]}"))
                    found.add(name)
        except (SafetensorError, OSError) as error:
            problems.append(_problem(path, "", f"not a whole safetensors file ({error})"))
    if not problems and all(name in wanted or name.endswith(_ROTARY) for name in found):
        tied = {"lm_head.weight"} if base.hf.config.tie_word_embeddings else set()
        missing = sorted(wanted.keys() - found - tied)
        problems += [_problem(folder, name, "is missing in the weights") for name in missing]
    if problems:
        raise InvalidInputError(problems[:MOST_PROBLEMS], total=len(problems))


def _problem(path: Path, name: str, text: str) -> Problem:
    return Problem(file=str(path), line=0, column=name, value="", allowed=text)

"""This module knows the model shapes by name.

There are those that ship, those of this process, and any local config.json.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Final

from loramux_profiles.datafiles import data_dir, looks_like_path, read_json, unknown
from loramux_profiles.hf_config import shape_from_config
from loramux_profiles.shapes import ModelShape


@lru_cache(maxsize=1)
def _shipped() -> tuple[dict[str, ModelShape], dict[str, str]]:
    # our own file is read without pydantic: the GPU suite runs where there is none
    shapes: dict[str, ModelShape] = {}
    names: dict[str, str] = {}
    for name, entry in read_json(data_dir() / "shapes.json")["shapes"].items():
        aliases = entry.pop("aliases", [])
        shapes[name] = ModelShape(name=name, **entry)
        for alias in (name, *aliases):
            names[alias.lower()] = name
    return shapes, names


def shape_names() -> list[str]:
    """Return the names of the shapes that ship, in the order of the file."""
    return list(_shipped()[0])


_REGISTERED: Final[dict[str, ModelShape]] = {}


def register_shape(shape: ModelShape) -> None:
    """Make a shape known by its name in this process.

    This is for a model that is at hand, not in a file. Raises ValueError where another shape, or a
    shipped one, has the name.
    """
    if shape.name.lower() in _shipped()[1] or _REGISTERED.get(shape.name, shape) != shape:
        raise ValueError(f"another shape is called {shape.name!r}")
    _REGISTERED[shape.name] = shape


@lru_cache(maxsize=512)
def load_shape(name_or_path: str, folder: str = "") -> ModelShape:
    """Return a shipped shape by name (or Hugging Face id), or the shape of a local config.json.

    A path may also be that of the folder that config.json is in. A relative path starts at `folder`
    (empty: the working folder); the shape is called by the path as given. Raises UsageError for an
    unknown name, with the nearest ones, and InvalidInputError for a bad config.json.
    """
    if name_or_path in _REGISTERED:
        return _REGISTERED[name_or_path]
    shapes, names = _shipped()
    known = names.get(name_or_path.lower())
    if known is not None:
        return shapes[known]
    if looks_like_path(name_or_path):
        return shape_from_config(Path(folder) / name_or_path, name_or_path)
    raise unknown("base_model", name_or_path, list(shapes), ", or the path of a Hugging Face config.json")

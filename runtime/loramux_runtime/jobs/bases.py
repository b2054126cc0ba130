"""Opens the base model that words name (a folder, a shape, a jobs file), or its outline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from loramux_profiles.shape_catalog import shape_names
from loramux_runtime.fused.base_config import own_config
from loramux_runtime.fused.base_model import (
    DTYPES,
    BaseModel,
    FrozenDtype,
    build_base,
    load_base,
    outline,
    shape_config,
)
from loramux_runtime.fused.base_weights import core_parameters
from loramux_runtime.jobs.jobs_file import BaseConfig, read_base
from loramux_traces.errors import UsageError
from loramux_traces.files import real_path


def parse_base(text: str, dtype: str) -> BaseConfig:
    """Read what --base says: a folder, the name of a shape, or a jobs file that has a base.

    UsageError where it is none of them, or the dtype is none.
    """
    path = Path(text)
    if path.suffix in (".yaml", ".yml", ".json") and path.is_file():
        return read_base(path)
    if dtype not in ("fp32", "bf16"):
        raise UsageError(f"--dtype is fp32 or bf16, not {dtype[:20]!r}")
    kind: Any = dtype
    if path.is_dir():
        return BaseConfig(path=real_path(path), dtype=kind)
    if text not in shape_names():
        raise UsageError(f"--base {text!r}: no such folder, and no shape of that name ({', '.join(shape_names())})")
    return BaseConfig(shape=text, dtype=kind)


def open_base(config: BaseConfig, device: torch.device | str = "cpu") -> BaseModel:
    """Open the base model that a jobs file asks for.

    Raises InvalidInputError or UsageError where it cannot be had.
    """
    if config.path is not None:
        return load_base(config.path, dtype=config.dtype, device=device)
    if config.shape is not None:
        name, hf = config.shape, shape_config(config.shape)
    else:
        assert config.config is not None
        name, hf = f"tiny-{config.config['model_type']}", own_config(config.config, "base.config")
    if torch.device(device).type == "cpu":
        _check_memory(name, hf, config.dtype)
    return build_base(hf, name=name, dtype=config.dtype, device=device, seed=config.seed)


def _check_memory(name: str, hf: Any, dtype: FrozenDtype) -> None:
    """Refuse random weights that this machine cannot hold, before it is brought down by them."""
    wanted = core_parameters(hf) * DTYPES[dtype].itemsize
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted > there:
        raise UsageError(f"base {name}: its weights take {wanted >> 20} MiB, this machine has {there >> 20} MiB")


def outline_base(config: BaseConfig) -> BaseModel:
    """Make the same model without its weights, in no memory.

    That is enough to prepare jobs that are trained elsewhere.
    """
    if config.path is None:
        return open_base(config, "meta")
    return outline(config.path, dtype=config.dtype)

"""This module says what a profile is of: the device, the software, the code."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch

from loramux_profiles.shapes import ModelShape

PACKAGES: Final = ("torch", "transformers", "loramux")


def describe_device(device: torch.device, name: str) -> dict[str, Any]:
    """Return the `device` section of a record.

    `name` is that of the device profile.
    """
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return {
            "name": name,
            "kind": "cuda",
            "description": str(card.name),
            "driver": _driver(),
            "memory_bytes": int(card.total_memory),
            "threads": torch.get_num_threads(),
        }
    return {
        "name": name,
        "kind": "cpu",
        "description": _processor(),
        "memory_bytes": physical_bytes(),
        "threads": torch.get_num_threads(),
    }


def describe_run(
    shape: ModelShape, dtype: str, device: torch.device, name: str, *, exact: bool, seed: int
) -> dict[str, Any]:
    """Return a record without its points and its date.

    `name` is that of the device profile.
    """
    described = describe_device(device, name)
    one_core = described["kind"] == "cpu" and described["threads"] == 1
    fields = [each.name for each in dataclasses.fields(shape) if each.name != "source"]
    return {
        "schema_version": 1,
        "kind": "profile",
        "device": described,
        "model": {**{field: getattr(shape, field) for field in fields}, "dtype": dtype},
        "exact": exact,
        "clock": "process" if one_core else "wall",
        "versions": versions(),
        "commit": commit(),
        "seed": seed,
    }


def physical_bytes() -> int:
    """Return the main memory of the machine in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the runtime stands on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a checkout on the path, not installed
            found[name] = "not installed"
    return found


def commit() -> str:
    """Return the commit of the checkout that this code lies in.

    It ends in `-dirty` where the checkout's files differ; it is empty where there is no checkout.
    """
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return f"{head}-dirty" if head and git("status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _driver() -> str:
    try:
        pynvml: Any = import_module("pynvml")  # extra `gpu`
    except ImportError:
        return f"CUDA {torch.version.cuda}"
    try:
        pynvml.nvmlInit()
        return f"{pynvml.nvmlSystemGetDriverVersion()}, CUDA {torch.version.cuda}"
    except pynvml.NVMLError:
        return f"CUDA {torch.version.cuda}"

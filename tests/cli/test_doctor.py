"""`loramux doctor` says what is true of the machine, whatever is installed on it."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest

from loramux_cli import doctor

from .conftest import Cli

FAKE_TORCH = """
class _Card:
    name = {name!r}
    total_memory = 80 * 2**30
class cuda:
    device_count = staticmethod(lambda: 2)
    get_device_properties = staticmethod(lambda i: _Card)
"""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Packages as if these were all there are: a base install, to which a test adds."""
    found = {"loramux": "1.0", "numpy": "2.0", "scipy": "1.0", "pandas": "3.0", "simpy": "4.0", "matplotlib": "3.0"}

    def version(package: str) -> str:
        if package not in found:
            raise importlib.metadata.PackageNotFoundError(package)
        return found[package]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return found


def facts(cli: Cli) -> dict[str, Any]:
    ran = cli("doctor", "--json")
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(ran.out)
    return found


def test_a_base_install_simulates(cli: Cli, installed: dict[str, str]) -> None:
    ran = cli("doctor")
    assert "simulate, sweep, compare, plot, trace: ready" in ran.out
    assert "train, run: need torch and transformers and safetensors: pip install 'loramux[runtime]'" in ran.out
    found = facts(cli)
    assert (found["simulate"], found["train"], found["run"], found["ray"]) == (True, False, False, False)
    assert found["packages"]["torch"] is None and found["gpus"] == []


def test_with_the_cpu_build_it_trains_on_cpu(
    cli: Cli, installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed |= {"torch": "2.13.0+cpu", "transformers": "5.23", "safetensors": "0.5"}
    monkeypatch.setattr(doctor, "GPU_CHECK", "raise SystemExit('asked')")
    lines = cli("doctor").out.splitlines()
    assert "train, run: ready on cpu" in lines
    assert "run --engine ray: needs ray: pip install 'loramux[ray]'" in lines
    assert "curves for TensorBoard: needs tensorboard: pip install 'loramux[tensorboard]'" in lines
    installed |= {"ray": "2.50", "tensorboard": "2.20"}
    assert {"run --engine ray: ready", "curves for TensorBoard: ready"} <= set(cli("doctor").out.splitlines())
    found = facts(cli)
    assert found["train"] and found["run"] and found["ray"] and found["gpu_problem"] is None


def test_gpus_are_named(cli: Cli, installed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed |= {"torch": "2.13.0", "transformers": "5.23", "safetensors": "0.5"}
    (tmp_path / "torch.py").write_text(FAKE_TORCH.format(name="NVIDIA H100\x1b[2J"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    shown = r"NVIDIA H100\x1b[2J (80.00 GiB)"
    assert f"train, run: ready on cpu, cuda:0 {shown}, cuda:1 {shown}\n" in cli("doctor").out
    assert facts(cli)["gpus"][1] == {"name": "NVIDIA H100\x1b[2J", "memory_bytes": 80 * 2**30}


def test_a_torch_py_in_this_folder_is_not_torch(
    cli: Cli, installed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed |= {"torch": "2.13.0", "transformers": "5.23", "safetensors": "0.5"}
    (tmp_path / "torch.py").write_text(FAKE_TORCH.format(name="a stranger's"))
    monkeypatch.chdir(tmp_path)
    assert "a stranger's" not in [gpu["name"] for gpu in facts(cli)["gpus"]]


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("raise OSError('libcudart.so.13: cannot open')", "OSError: libcudart.so.13: cannot open"),
        ("import time; time.sleep(1000)", "no answer within 0 s"),
        ("print('hello')", "answered with something else than its devices"),
        ("import os; os._exit(7)", "ended with 7"),
    ],
)
def test_a_torch_that_cannot_be_asked_is_said(
    cli: Cli, installed: dict[str, str], code: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed |= {"torch": "2.13.0", "transformers": "5.23", "safetensors": "0.5"}
    monkeypatch.setattr(doctor, "GPU_CHECK", code)
    monkeypatch.setattr(doctor, "GPU_CHECK_S", 0.1 if "sleep" in code else 6000.0)
    ran = cli("doctor")
    assert ran.code == 0 and f"asked for them: {problem}" in ran.out
    assert facts(cli)["gpu_problem"] == problem


def test_this_machine(cli: Cli) -> None:
    found = facts(cli)
    assert found["packages"]["numpy"] == importlib.metadata.version("numpy")
    assert found["train"] == (not found["missing"])

"""This module is `loramux doctor`.

It says what is installed, and so what can run here. It imports neither torch nor ray.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

PACKAGES: Final = (
    "loramux",
    "numpy",
    "scipy",
    "pandas",
    "simpy",
    "matplotlib",
    "torch",
    "transformers",
    "safetensors",
    "ray",
    "tensorboard",
)
GPU_CHECK: Final = """
import json, torch
cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps([{"name": card.name, "memory_bytes": card.total_memory} for card in cards]))
"""
"""Program that asks torch for its GPUs, run in a process of its own.

Importing torch takes seconds, and a driver that hangs must not hang us.
"""
GPU_CHECK_S: Final = 60.0


def doctor_command(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Say what is installed and what can run here."""
    facts = examine()
    if as_json:
        from loramux_traces.filesafe import json_text

        typer.echo(json_text(facts, indent=2))
        return
    for line in _lines(facts):
        typer.echo(line)


def examine() -> dict[str, Any]:
    """Return what is installed, and whether each part can run.

    `packages` are by version (None: not installed), `gpus` are those that torch sees (name,
    memory_bytes; `gpu_problem` where it could not be asked).
    """
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from loramux_cli.device_choice import TRAINS_WITH
    from loramux_profiles.devices import device_names
    from loramux_traces.data import sample_path

    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    missing = [name for name in TRAINS_WITH if found[name] is None]
    gpus, problem = ([], None) if missing else find_gpus(found["torch"] or "")
    return {
        "schema_version": 1,
        "python": platform.python_version(),
        "packages": found,
        "device_profiles": device_names(),
        "sample": str(sample_path()),
        "simulate": True,
        "train": not missing,
        "run": not missing,
        "ray": not missing and found["ray"] is not None,
        "tensorboard": not missing and found["tensorboard"] is not None,
        "missing": missing,
        "gpus": gpus,
        "gpu_problem": problem,
    }


def find_gpus(torch_version: str) -> tuple[list[dict[str, Any]], str | None]:
    """Return the CUDA devices that torch sees, and why it could not be asked.

    Its CPU build (version +cpu) is not asked.
    """
    import json
    import subprocess
    import sys

    if torch_version.endswith("+cpu"):
        return [], None
    try:
        # -P: a torch.py in this folder is not torch
        done = subprocess.run(
            [sys.executable, "-P", "-c", GPU_CHECK], capture_output=True, text=True, timeout=GPU_CHECK_S, check=False
        )
    except subprocess.TimeoutExpired:
        return [], f"no answer within {GPU_CHECK_S:.0f} s"
    if done.returncode:
        return [], (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    try:
        gpus: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return [], "answered with something else than its devices"
    return gpus, None


def _lines(facts: dict[str, Any]) -> list[str]:
    from loramux_cli.estimate import gib
    from loramux_traces.errors import printable

    lines = [f"python {facts['python']}"]
    lines += [f"{package:12} {number or 'not installed'}" for package, number in facts["packages"].items()]
    lines.append(f"device profiles: {', '.join(facts['device_profiles'])}")
    lines.append("simulate, sweep, compare, plot, trace: ready")
    if facts["missing"]:
        lines.append(f"train, run: need {' and '.join(facts['missing'])}: pip install 'loramux[runtime]'")
        return lines
    cards = [f"{printable(gpu['name'])} ({gib(gpu['memory_bytes'])})" for gpu in facts["gpus"]]
    where = "".join(f", cuda:{number} {card}" for number, card in enumerate(cards))
    lines.append(f"train, run: ready on cpu{where}")
    if facts["gpu_problem"] is not None:
        lines.append(f"GPUs: not known; torch, asked for them: {printable(facts['gpu_problem'], 200)}")
    for name, what in (("ray", "run --engine ray"), ("tensorboard", "curves for TensorBoard")):
        needs = f"needs {name}: pip install 'loramux[{name}]'"
        lines.append(f"{what}: {'ready' if facts[name] else needs}")
    return lines

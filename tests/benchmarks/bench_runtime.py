"""Speed of the fused step beside its peers, in real tokens (never pads) per CPU-second, one thread.

Run by hand.

    python tests/benchmarks/bench_runtime.py [peft|moe-peft|methods|profile ...]
        [--repeats N] [--json FILE]

`peft`: 8 LoRA jobs of mixed lengths against PEFT, job after job. `moe-peft`: 4 MixLoRA jobs against
moe-peft 2.0.2, run in its own environment (--moe-peft PYTHON; peer_moe_peft.py says how to make
it). `methods`: MixLoRA and DynMoLE against LoRAs of as many trainable parameters. `profile`: where
a step's time goes. Competitors take turns inside one run, the figures are medians with quartiles,
and ratios are of measurements of one turn: the machines are shared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from loramux_runtime.fused.adapters.dynmole.config import DynMoleConfig
from loramux_runtime.fused.adapters.lora.config import LoraConfig
from loramux_runtime.fused.adapters.mixlora.config import MixLoraConfig
from loramux_runtime.fused.base_model import BaseModel
from loramux_runtime.fused.memory_meter import keep_freed_memory
from peer_peft import Peft
from runtime_profile import profile_step
from runtime_work import (
    LR,
    SHAPE,
    Figure,
    Fused,
    Rows,
    build,
    figures,
    interleave,
    mixed_rows,
    padded_tokens,
    real_tokens,
    timed,
)

HERE = Path(__file__).parent
EIGHT_JOBS = (48, 64, 96, 128, 160, 224, 288, 336)
"""Typical row lengths: rows of 0.6 to 1.4 times that, in all about 5,400 tokens."""
FOUR_JOBS = (48, 80, 128, 192)
MOE_PEFT = "/tmp/moepeft/bin/python"
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""What `keep_freed_memory` sets in this process (for us and for PEFT), for the peer in its own."""
Lines = dict[str, Any]


def show(title: str, lines: list[Figure], ratio: str, goal: str) -> Lines:
    """Print one table."""
    print(f"\n{title}\n{'':34}{'ms':>8}{'quartiles':>16}{'tokens/CPU-s':>14}{ratio:>12}{'quartiles':>14}")
    for line in lines:
        print(
            f"  {line.name:32}{line.seconds * 1e3:8.0f}{line.low * 1e3:9.0f}-{line.high * 1e3:<6.0f}"
            f"{line.tokens_per_cpu_second:14.0f}{line.ratio:12.3f}{line.ratio_low:8.3f}-{line.ratio_high:.3f}"
        )
    print(f"  goal: {goal}")
    return {"title": title, "ratio": ratio, "goal": goal, "lines": [asdict(line) for line in lines]}


def describe(rows: Rows) -> str:
    """Tokens, and what padding would add."""
    real = real_tokens(rows)
    return (
        f"{len(rows)} jobs, {sum(map(len, rows))} rows, {real} real tokens; pads to each job's longest row "
        f"{padded_tokens(rows, False) / real:.2f}x, to the longest of all {padded_tokens(rows, True) / real:.2f}x"
    )


def bench_peft(repeats: int) -> Iterator[Lines]:
    """8 mixed LoRA jobs, ranks 8 and 16.

    Labels on answers only (the default of instruction data) and everywhere.
    """
    base = build()
    state = {name: value.clone() for name, value in base.hf.state_dict().items()}
    rows = mixed_rows(EIGHT_JOBS)
    for dropout, answers in ((0.05, True), (0.05, False), (0.0, True), (0.0, False)):
        jobs = [("lora", LoraConfig(rank=r, alpha=2 * r, dropout=dropout)) for r in (8, 16) * (len(EIGHT_JOBS) // 2)]
        runners = {
            "peft 0.21, padded": timed(Peft(state, jobs, rows, "padded", answers)),
            "peft 0.21, packed": timed(Peft(state, jobs, rows, "packed", answers)),
            "loramux": timed(Fused(base, jobs, rows, answers=answers)),
            "loramux, exact=False": timed(Fused(base, jobs, rows, exact=False, answers=answers)),
        }
        learned = "answers (half of each row)" if answers else "every token"
        times = interleave(runners, repeats)
        lines = figures(times, "peft 0.21, padded", real_tokens(rows))
        yield show(f"LoRA, dropout {dropout}, {learned} learned: {describe(rows)}", lines, "speed", "1.5x PEFT padded")


@contextmanager
def moe_peft_runner(python: str, base: BaseModel, job: dict[str, Any], rows: Rows) -> Iterator[Callable[[], float]]:
    """A runner whose steps are taken, and timed, by the peer in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        base.hf.config._attn_implementation = "eager"
        base.hf.config.save_pretrained(folder)
        from safetensors.torch import save_file

        weights = {name: value.contiguous() for name, value in base.hf.state_dict().items()}
        save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
        config = json.loads(Path(folder, "config.json").read_text())
        config.update(rope_theta=10000.0, torch_dtype="float32")
        Path(folder, "config.json").write_text(json.dumps(config))
        work = {
            "base": folder,
            "jobs": [job] * len(rows),
            "rows": [[row.tolist() for row in one] for one in rows],
            "lr": LR,
            "pad": SHAPE["pad_token_id"],
        }
        Path(folder, "work.json").write_text(json.dumps(work))
        environment = {
            **os.environ,
            "MOE_PEFT_EXECUTOR_TYPE": "CPU",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": "",
            **ALLOCATOR,
        }
        process = subprocess.Popen(
            [python, str(HERE / "peer_moe_peft.py"), f"{folder}/work.json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def answer() -> dict[str, Any]:
            for line in stdout:
                if line.startswith("{"):
                    value: dict[str, Any] = json.loads(line)
                    return value
            raise RuntimeError(f"moe-peft ended with code {process.wait()}")

        answer()

        def run() -> float:
            stdin.write("step\n")
            stdin.flush()
            return float(answer()["seconds"])

        try:
            yield run
        finally:
            stdin.close()
            process.wait()


def bench_moe_peft(repeats: int, python: str) -> Iterator[Lines]:
    """4 MixLoRA jobs (8 experts, 2 chosen, rank 8 everywhere)."""
    if not Path(python).exists():
        print(f"\nmoe-peft: skipped, no Python at {python} (peer_moe_peft.py says how to set the peer up)")
        return
    for title, rows in (
        ("mixed lengths", mixed_rows(FOUR_JOBS)),
        ("equal lengths, no pads", mixed_rows((128,) * 4, spread=0.0)),
    ):
        base = build()
        theirs = {
            "r": 8,
            "lora_alpha": 16,
            "lora_dropout": 0.05,
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"],
            "num_experts": 8,
            "top_k": 2,
        }
        attention = LoraConfig(rank=8, alpha=16, target_modules="attention")
        job = ("mixlora", MixLoraConfig(rank=8, alpha=16, attention=attention))
        with moe_peft_runner(python, build(), theirs, rows) as peer:
            runners = {"moe-peft 2.0.2": peer, "loramux": timed(Fused(base, [job] * 4, rows))}
            times = interleave(runners, repeats)
        lines = figures(times, "moe-peft 2.0.2", real_tokens(rows))
        yield show(f"MixLoRA, {title}: {describe(rows)}", lines, "speed", "3x moe-peft")


def equal_pairs(dropout: float) -> list[tuple[str, str, tuple[str, Any], tuple[str, Any]]]:
    """(name, goal, method, LoRA of as many trainable parameters).

    Ranks are chosen so that neither side's is rounded up to a wider bucket; the mixtures' gates
    come on top (0.7% of the parameters for MixLoRA, 1 to 5% for DynMoLE), to the mixtures'
    disadvantage.
    """

    def lora(rank: int, targets: str) -> LoraConfig:
        return LoraConfig(rank=rank, alpha=rank, dropout=dropout, target_modules=targets)

    mixlora = MixLoraConfig(rank=8, alpha=8, dropout=dropout, num_experts=8, attention=lora(64, "attention"))
    return [
        ("mixlora E8 k2 r8", "1.30 at 256 tokens, 1.15 at 512", ("mixlora", mixlora), ("lora", lora(64, "all-linear"))),
        (
            "dynmole E8 r8",
            "1.00",
            ("dynmole", DynMoleConfig(rank=8, alpha=8, dropout=dropout, num_experts=8)),
            ("lora", lora(64, "mlp")),
        ),
        (
            "dynmole E6 r32",
            "1.00",
            ("dynmole", DynMoleConfig(rank=32, alpha=32, dropout=dropout, num_experts=6)),
            ("lora", lora(192, "mlp")),
        ),
    ]


def bench_methods(repeats: int) -> Iterator[Lines]:
    """4 jobs of one method, of 4 rows each."""
    base = build()
    for exact in (True, False):
        for dropout in (0.05, 0.0):
            for tokens in (256, 512):
                rows = mixed_rows((tokens // 4,) * 4, spread=0.0)
                for name, goal, method, lora in equal_pairs(dropout):
                    runners = {
                        f"lora r{lora[1].rank} {lora[1].target_modules}": Fused(base, [lora] * 4, rows, exact=exact),
                        name: Fused(base, [method] * 4, rows, exact=exact),
                    }
                    sizes = [fused.adapters[0].n_params for fused in runners.values()]
                    times = interleave({key: timed(fused) for key, fused in runners.items()}, repeats)
                    title = (
                        f"{name}: 4 jobs x {tokens} tokens, dropout {dropout}, exact={exact}; parameters per job "
                        f"{sizes[0]:,} and {sizes[1]:,}"
                    )
                    lines = figures(times, next(iter(runners)), real_tokens(rows), cost=True)
                    yield show(title, lines, "step time", goal)


def commit() -> str:
    """The commit that is measured, and whether files differ from it."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=HERE,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def processor() -> str:
    """The processor as Linux names it."""
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    except OSError:
        return "unknown"
    return names[0].partition(":")[2].strip() if names else "unknown"


def main() -> None:
    """Run the chosen parts and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["peft", "moe-peft", "methods", "profile"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--moe-peft", default=os.environ.get("LORAMUX_MOE_PEFT", MOE_PEFT))
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = keep_freed_memory()
    bench: dict[str, Callable[[], Iterable[Lines]]] = {
        "peft": lambda: bench_peft(options.repeats),
        "moe-peft": lambda: bench_moe_peft(options.repeats, options.moe_peft),
        "methods": lambda: bench_methods(options.repeats),
        "profile": lambda: map(profile_step, ("lora", "mixlora", "dynmole")),
    }
    unknown = set(options.parts) - set(bench)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))} (known: {', '.join(bench)})")
    result: dict[str, Any] = {
        "measured": "CPU-seconds of one thread, shared machine: compare within a table only",
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": f"{processor()}, {platform.machine()}, {os.cpu_count()} cores, 1 thread",
        "load_at_start": os.getloadavg()[0],
        "repeats": options.repeats,
        "keep_freed_memory": kept,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "numpy")},
        "python": sys.version.split()[0],
        "shape": SHAPE,
        "parts": options.parts,
        "tables": [],
    }
    for part in options.parts:
        for table in bench[part]():
            result["tables"].append(table)
            if options.json:  # after every table: a run may take half an hour
                options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

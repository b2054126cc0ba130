"""This module holds command-line options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Trace = Annotated[
    str | None,
    typer.Option(help="Jobs file (.csv, .json, .jsonl, .yaml, also .gz; - for stdin). Omitted: the shipped sample."),
]
PolicyName = Annotated[
    list[str] | None,
    typer.Option(help="Policy: a name, name:key=value,..., or module:Class. Repeatable. (loramux policies lists them)"),
]
PolicyFile = Annotated[
    list[Path] | None,
    typer.Option(help="Python file that defines policies; they can then be named. Runs the file's code. Repeatable."),
]
Devices = Annotated[
    str | None,
    typer.Option(help="As in 4xa100-80g,2xl4. Default: 1xa100-80g; for the shipped sample 4xa100-80g."),
]
DeviceProfile = Annotated[
    Path | None,
    typer.Option(
        help="Device profile (a JSON file) or what loramux profile measured, to simulate instead; --devices N says "
        "how many (default: 1)."
    ),
]
AllowOther = Annotated[
    bool,
    typer.Option("--allow-other", help="Use a measured profile although jobs are on other models than it is of."),
]
Memory = Annotated[str | None, typer.Option(help="Memory of every device, as in 6GiB. Default: what its profile says.")]
Fusion = Annotated[str, typer.Option(help="packed (no padding) or padded (rows as long as the longest of the step).")]
Fidelity = Annotated[str, typer.Option(help="rate (large traces) or step (every fused step with its real lengths).")]
MaxResident = Annotated[int | None, typer.Option(help="Seats per device. Default: what memory and the policy allow.")]
Ideal = Annotated[
    bool, typer.Option("--ideal", help="No charges, exact predictions, no memory limit but the trace's mem_bytes.")
]
SpeedupCurve = Annotated[
    str | None,
    typer.Option(help="Aggregate rate of n co-residents instead of the time model: none, free, linear:0.3,2.5, FILE."),
]
PredictionError = Annotated[float, typer.Option(help="Sigma of the lognormal error on predicted job lengths.")]
MultiGpu = Annotated[str, typer.Option(help="Jobs that want several devices: gang (all or nothing) or drop.")]
Warmup = Annotated[
    float,
    typer.Option(help="Share of the jobs, by submission, before the statistics (of jobs and devices) begin."),
]
Seeds = Annotated[int, typer.Option(min=1, max=100000, help="How many seeds (0, 1, ...).")]
Out = Annotated[Path | None, typer.Option(help="Folder for the results.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the results in --out.")]
TorchDevice = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: cuda where there is one.")]
ProfileName = Annotated[
    str | None, typer.Option(help="Device profile, by name or file. Default: the shipped one of the device.")
]
JobMemory = Annotated[
    str | None, typer.Option(help="Memory the jobs may use, as in 6GiB. Default: what the profile says.")
]
Residents = Annotated[int | None, typer.Option(min=1, help="Most jobs on a device at a time.")]
Recompute = Annotated[
    bool, typer.Option("--recompute", help="Keep layer inputs only; run layers again in the backward pass.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads. Default: 1 for a small model, else what torch chooses.")
]

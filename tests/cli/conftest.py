"""What the tests of the command line share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from loramux_cli.main import main
from loramux_policies import registry

HEADER = "job_id,submit_s,base_model,method,batch_size,seq_len,total_steps,priority"
ROWS = tuple(
    f"j{i:02},{7 * i},{base},{method},4,{length},{steps},{i % 3}"
    for i, (base, method, length, steps) in enumerate(
        [
            ("smollm2-135m", "lora", 128, 300),
            ("tinyllama-1.1b", "mixlora", 200, 90),
            ("smollm2-135m", "dynmole", 64, 1000),
            ("tinyllama-1.1b", "lora", 300, 150),
            ("smollm2-135m", "mola", 500, 40),
            ("tinyllama-1.1b", "lora", 90, 700),
        ]
        * 3
    )
)


@dataclass(frozen=True)
class Ran:
    """One command in this process."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ran]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`cli("simulate", ...)`: run the command in this process.

    Stdout and stderr as file descriptors see them.
    """
    import signal

    registry.names()
    # policy files of one test are unknown to the next
    monkeypatch.setattr(registry, "_known", dict(registry._known))

    def run(*argv: object) -> Ran:
        words = [str(word) for word in argv]
        monkeypatch.setattr(sys, "argv", ["loramux", *words])
        before = signal.getsignal(signal.SIGTERM)
        capfd.readouterr()
        code = 0
        try:
            main(words)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = capfd.readouterr()
        assert "Traceback" not in err + out
        return Ran(code, out, err)

    return run


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Eighteen small jobs."""
    return write_trace(tmp_path / "jobs.csv")


def write_trace(path: Path, rows: tuple[str, ...] = ROWS, header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path

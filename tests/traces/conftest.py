"""What the tests of the trace package share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

HEADER = "job_id,submit_s,base_model,method,batch_size,seq_len,duration_s"
ROW = "a,0,llama-7b,lora,8,512,100"


@pytest.fixture
def csv_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a jobs.csv: `csv_file(rows, header=...)`."""

    def write(rows: Sequence[str] = (ROW,), header: str = HEADER, name: str = "jobs.csv") -> Path:
        path = tmp_path / name
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def originals() -> Path:
    """Handmade files in the exact formats of the public traces."""
    return Path(__file__).parent / "data"

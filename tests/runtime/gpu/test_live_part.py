"""The GPU suite's live replay, as far as a CPU goes.

Its trace, and what it says where packages are missing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu import live as part
from gpu.store import Store
from loramux_profiles.checked import read_checked


@pytest.mark.parametrize("tiny", [True, False])
def test_its_trace_is_one(tiny: bool, tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(part.trace(tiny=tiny))
    jobs = list(read_checked(file))
    assert len(jobs) == 12 and {job.method for job in jobs} == {"lora", "mixlora", "dynmole"}
    assert {job.base_model for job in jobs} == {"llama-tiny" if tiny else "llama-7b"}


def test_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "NEEDS", ("no_such_package",))
    store = Store(tmp_path / "results.jsonl")
    part.live(store, tmp_path, "cpu", lambda: 1000.0, tiny=True)
    assert store.rows[-1]["error"] == "needs no_such_package"

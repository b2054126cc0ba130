"""The profiles that ship.

Whole, small enough to review, in the right place, and as good as they say.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from loramux_profiles.datafiles import data_dir
from loramux_profiles.devices import device_names
from loramux_profiles.fit import time_model
from loramux_profiles.records import check_matches, read_record
from loramux_profiles.shape_catalog import load_shape

RECORDS = sorted(path for path in data_dir().glob("*/*.json") if path.name != "device.json")


def test_there_is_one_of_the_cpu() -> None:
    assert data_dir() / "cpu" / "llama-tiny.json" in RECORDS


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_record_is_what_it_says(path: Path) -> None:
    record = read_record(path)
    assert path.stat().st_size <= 400_000
    assert path.parent.name == record.device.name
    assert record.device.name in device_names()
    check_matches(record, path.parent.name, load_shape(path.stem), record.model.dtype)
    assert record.commit
    assert not record.commit.endswith("-dirty")
    assert record.fit is not None and record.fit.memory is not None and record.fit.time is not None
    assert record.fit.memory.cross_validated.mape <= 0.01
    assert record.fit.memory.alpha == 0.01
    assert record.fit.time.cross_validated.mape <= 0.10
    model = time_model(record)
    errors = [abs(model.seconds(p.point) / record.even_s(p.time) - 1) for p in record.timed if p.time is not None]
    # the fit has seen these
    assert sum(errors) / len(errors) <= record.fit.time.cross_validated.mape

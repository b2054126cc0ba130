"""Profile records: what is written comes back, and nothing else is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loramux_profiles.records import ProfileRecord, check_matches, digest, read_record, write_record
from loramux_profiles.shape_catalog import load_shape
from loramux_traces.errors import InvalidInputError, UsageError

from .measured import SHAPE, document, record


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.json"
    write_record(path, record(8))
    return path


def refused(path: Path) -> str:
    with pytest.raises(InvalidInputError) as caught:
        read_record(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def resealed(path: Path, change: Any) -> None:
    """The file with a change and a digest that fits it."""
    content = json.loads(path.read_text())
    change(content)
    content["sha256"] = digest(content)
    path.write_text(json.dumps(content))


def test_what_is_written_comes_back(file: Path) -> None:
    assert read_record(file) == record(8)


def test_writing_again_gives_the_same_bytes(file: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.json"
    write_record(again, read_record(file))
    assert again.read_bytes() == file.read_bytes()


def test_a_point_is_a_line(file: Path) -> None:
    assert sum('"step"' in line for line in file.read_text().splitlines()) == 8


def test_every_flipped_digit_is_noticed(file: Path) -> None:
    text = file.read_text()
    for at in [i for i, c in enumerate(text) if c.isdigit()][::97]:
        file.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
        refused(file)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_refused(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    assert "JSON" in refused(file)


def test_a_record_without_digest_is_refused(file: Path) -> None:
    content = json.loads(file.read_text())
    del content["sha256"]
    file.write_text(json.dumps(content))
    assert "has no sha256" in refused(file)


def test_another_kind_of_file_is_refused(file: Path) -> None:
    file.write_text('{"schema_version": 1, "name": "cpu"}')
    assert "not a profile record" in refused(file)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("surplus", lambda d: d.update(surplus=1)),
        ("points.0.step", lambda d: d["points"][0]["step"]["jobs"][0].update(labels=-1)),
        ("points.0.step", lambda d: d["points"][0].update(step={"jobs": "none"})),
        ("points.0.memory", lambda d: d["points"][0].update(memory={"censored": True})),
        ("points.0.memory.dynamic", lambda d: d["points"][0]["memory"].update(dynamic=0)),
        ("points.0.time.median", lambda d: d["points"][0]["time"].update(median=-1.0)),
        ("points.0.step", lambda d: d["points"][0]["step"]["jobs"][0]["lengths"].append(True)),
        ("points.0.step", lambda d: d["points"][0]["step"]["jobs"][0]["adapter"].update(rank="8")),
        ("points.0.step", lambda d: d["points"][0]["step"].update(recompute=1)),
        ("points.0.memory.dynamic", lambda d: d["points"][0]["memory"].update(dynamic=True)),
        ("points.0.time.median", lambda d: d["points"][0]["time"].update(median="0.5")),
        ("points.0.time.samples.0", lambda d: d["points"][0]["time"]["samples"].insert(0, True)),
        ("exact", lambda d: d.update(exact="yes")),
        ("schema_version", lambda d: d.update(schema_version=True)),
        ("schema_version", lambda d: d.update(schema_version=2)),
        ("device.kind", lambda d: d["device"].update(kind="tpu")),
        ("model.dtype", lambda d: d["model"].update(dtype="int3")),
    ],
)
def test_what_is_not_in_the_schema_is_refused(file: Path, key: str, change: Any) -> None:
    resealed(file, change)
    assert f"column {key}" in refused(file)


def test_no_infinities(file: Path) -> None:
    file.write_text(file.read_text().replace('"median":', '"median":NaN,"was":', 1))
    assert "NaN" in refused(file)


def test_a_profile_of_another_device_or_model_is_refused_unless_allowed() -> None:
    mine = record(2)
    check_matches(mine, "cpu", SHAPE, "fp32")
    for device, shape, dtype, kind in (
        ("h100-80g", SHAPE, "fp32", None),
        ("cpu", load_shape("llama-7b"), "fp32", None),
        ("cpu", SHAPE, "bf16", None),
        ("cpu", SHAPE, "fp32", "cuda"),
    ):
        with pytest.raises(UsageError, match="--allow-other"):
            check_matches(mine, device, shape, dtype, kind=kind)
        check_matches(mine, device, shape, dtype, kind=kind, allow=True)


def test_the_model_is_known_by_its_dimensions() -> None:
    named = document(2)
    named["model"]["name"] = "another-name"
    check_matches(ProfileRecord.model_validate(named), "cpu", SHAPE, "fp32")

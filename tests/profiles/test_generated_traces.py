"""Whatever `trace generate` writes, `trace validate` accepts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from loramux_profiles.checked import generate, read_checked
from loramux_profiles.shape_catalog import shape_names
from loramux_traces import UsageError, write_trace
from loramux_traces.generators import KINDS, get_generator

NAMES = st.sampled_from(
    [*shape_names(), "llama-3.2-1b", "lora", "mola", "Lora", "", "../m", "a b", "x" * 300, "\u00e9", "a\nb", "-"]
)
SHARES = st.lists(st.builds("{}{}".format, NAMES, st.sampled_from(["", ":1", ":1e-9", ":0", ":nan", ":1e300", ":x"])))
SIZES = st.sampled_from(["", "6GiB:3,10GiB:2", "1", "0", "9PB", "1e400", "8PiB", "1e15:1,1:1e-9"])


def values_of(spec: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return values in and out of the range of a parameter, ends included."""
    spec = next((option for option in spec.get("anyOf", ()) if option.get("type") != "null"), spec)
    if "enum" in spec:
        return st.sampled_from(spec["enum"])
    if spec["type"] == "string":
        return st.one_of(NAMES, SHARES.map(",".join), SIZES)
    low = spec.get("minimum", spec.get("exclusiveMinimum"))
    high = spec.get("maximum", spec.get("exclusiveMaximum"))
    ends = st.sampled_from([low, high, low + (high - low) / 7, 1, 0, -1])
    if spec["type"] == "integer":
        return st.one_of(ends.map(round), st.integers(round(low), round(high)))
    return st.one_of(ends, st.floats(low, high), st.floats(-9, 9).map(lambda power: 10.0**power))


@st.composite
def commands(draw: st.DrawFn) -> tuple[str, int, int, dict[str, Any]]:
    kind = draw(st.sampled_from(KINDS))
    properties = TypeAdapter(get_generator(kind).params).json_schema()["properties"]
    names = draw(st.lists(st.sampled_from(sorted(properties)), unique=True, max_size=4))
    jobs = draw(st.integers(1, 8))
    return kind, jobs, draw(st.integers(0, 2**63 - 1)), {name: draw(values_of(properties[name])) for name in names}


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(commands(), st.sampled_from(["csv", "json", "yaml", "jsonl", "csv.gz"]))
def test_what_is_generated_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, command: tuple[str, int, int, dict[str, Any]], ending: str
) -> None:
    kind, jobs, seed, parameters = command
    try:
        trace = generate(kind, jobs=jobs, seed=seed, **parameters)
    except UsageError as error:
        assert len(str(error)) < 2000
        return
    path = tmp_path_factory.getbasetemp() / f"generated.{ending}"
    write_trace(trace, path, force=True)
    assert read_checked(path).sha256 == trace.sha256


@pytest.mark.parametrize(
    ("kind", "parameters", "said"),
    [
        (
            "philly-like",
            {"bases": "llama-3.2-1b:1"},
            r"philly-like bases: unknown base_model 'llama-3\.2-1b'; did you mean",
        ),
        ("gavel", {"bases": "llama-2-7b:1,absent:1e-9"}, "gavel bases: unknown base_model 'absent'"),
        ("bursty", {"methods": "lorra:1"}, "bursty methods: 'lorra' is no method; did you mean lora"),
        ("poisson", {"method": "x"}, "poisson method: 'x' is no method"),
        ("aspen-8", {"base_model": "lama-7b"}, "did you mean llama-7b"),
        ("hparam-search", {"bases": "a b"}, "hparam-search bases: 'a b': a name such as llama-7b"),
        ("poisson", {"rate": 1e-9}, "calendar time"),
        ("bursty", {"burst_jobs": 1e-300}, "must be at least 0.1"),
    ],
)
def test_names_and_numbers_that_no_reader_takes_are_refused(kind: str, parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        generate(kind, jobs=3, seed=1, **parameters)


def test_a_model_of_ones_own_is_found_from_the_folder_of_the_trace(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(
        '{"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,'
        ' "num_attention_heads": 4, "vocab_size": 272}'
    )
    trace = generate("gavel", folder=str(tmp_path), jobs=3, bases="m.json:1")
    write_trace(trace, tmp_path / "t.csv")
    assert len(read_checked(tmp_path / "t.csv")) == 3
    with pytest.raises(UsageError, match=re.escape("m.json: no such file")):
        generate("gavel", jobs=3, bases="m.json:1")

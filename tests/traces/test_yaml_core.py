"""YAML as its core schema has it, within bounds; whatever is wrong is one error with its line."""

from __future__ import annotations

import copy
import json
import math
import sys
from types import FrameType
from typing import Any

import pytest

from loramux_traces import yaml_core
from loramux_traces.job_types import plain_text
from loramux_traces.yaml_core import YamlError, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("[~, null, Null, true, FALSE]", [None, None, None, True, False]),
        ("[no, on, yes, y, None, nil]", ["no", "on", "yes", "y", "None", "nil"]),
        ("[1e-4, 1E3, .5, 1., -0.25, +7, 0x1F, 0o17, 0]", [1e-4, 1000.0, 0.5, 1.0, -0.25, 7, 31, 15, 0]),
        (
            "[010, 1:30, 1_000, 2024-01-01, 0b1, -, ., 1e]",
            ["010", "1:30", "1_000", "2024-01-01", "0b1", "-", ".", "1e"],
        ),
        ("[.inf, -.inf]", [math.inf, -math.inf]),
        ("['1', \"no\", !!str 5, ! 5]", ["1", "no", "5", "5"]),
        ("[!!int '5', !!float 2, !!bool 'true', !!null '', !!map {}, !!seq []]", [5, 2.0, True, None, {}, []]),
        ("{1: a, null: b, on: c}", {"1": "a", "null": "b", "on": "c"}),
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"a": {"b": 1, "c": 2}, "d": {"c": 3, "b": 1}}),
        ("d: {<<: [{a: 1}, {a: 2, b: 3}]}", {"d": {"a": 1, "b": 3}}),
        ("[&x [1], *x, *x]", [[1], [1], [1]]),
        ("[9" + "9" * 5000 + ", 0x" + "f" * 5000 + "]", [math.inf, math.inf]),
    ],
)
def test_what_is_read(text: str, value: Any) -> None:
    assert read_yaml(text).value == value


def bomb(width: int, depth: int) -> str:
    lines = ["a0: &a0 [" + ", ".join(["lol"] * width) + "]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * width) + "]" for i in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb: !!timestamp x", 2, "tag !!timestamp is not taken"),
        ("a: !!bool x", 1, "'x' is no !!bool"),
        ('a: !!int ""', 1, "'' is no !!int"),
        ('a: !!float ""', 1, "'' is no !!float"),
        ("a: !!python/object:os.system x", 1, "is not taken"),
        ("!!set {a, b}", 1, "is not taken"),
        ("a: !own x", 1, "tag !own is not taken"),
        ("a: 1\na: 2", 2, "key 'a' is given twice"),
        ("a: &x [*x]", 1, "stands inside its own anchor"),
        ("a: &x\n  b: *x", 2, "stands inside its own anchor"),
        ("a: *x", 1, "has no anchor"),
        ("? [a]\n: 1", 1, "a key must be text"),
        ("&x a: 1\n*x : 2", 2, "a key must be text"),
        ("a: {<<: 5}", 1, "<< takes a mapping"),
        ("a: 1\n---\nb: 2", 2, "one document"),
        ("- " * 65 + "x", 1, "nested too deeply"),
        ("[" * 100_000, 1, "nested too deeply"),
        ("a: [1", 1, "not YAML"),
        ("a: 1\n\x07", 2, "control character"),
        ("a: b: c", 1, "mapping values are not allowed"),
        (bomb(9, 9), 4, "aliases make this"),
        (bomb(2, 40), 13, "aliases make this"),
        ("a: &x {" + ", ".join(f"k{i}: 1" for i in range(3000)) + "}\n" + "".join(f"b{i}: {{<<: *x}}\n" for i in range(3000)), 106, "aliases make this"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, line: int, said: str) -> None:
    with pytest.raises(YamlError) as caught:
        read_yaml(text)
    assert said in caught.value.said
    assert caught.value.line == line or said in ("aliases make this", "not YAML")


def test_a_place_in_the_document_has_its_line() -> None:
    document = read_yaml("a:\n  - {b: 1}\n  - c: 2\n    d:\n      e: 3\n")
    assert document.lines(document.value["a"]).tolist() == [2, 3]  # type: ignore[attr-defined]
    assert [document.line_of(path) for path in (("a",), ("a", 1, "d", "e"), ("a", 1, "x"), ("x",))] == [1, 5, 3, 0]
    assert document.has(("a", 0, "b")) and not document.has(("a", 2))


@pytest.mark.parametrize("text", ["0x1F", "0o17", "+31", "31", "007", "1_000"])
def test_a_number_that_is_meant_as_a_name_stays_as_it_was_written(text: str) -> None:
    (value,) = read_yaml(f"[{text}]").value
    assert plain_text(value) == text
    assert plain_text(copy.deepcopy(value)) == text
    assert not isinstance(value, int) or (value == int(text, 0) and json.dumps(value) == str(int(text, 0)))


@pytest.mark.parametrize(
    "text", ["[" + "1, " * 1000 + "]", "- a\n" * 1000, "".join(f"k{i}: 'v'\n" for i in range(1000))]
)
def test_a_scalar_takes_no_call_of_a_function(text: str) -> None:
    # half a million of them fit in 1 MiB, and five calls for each took 1.7 us more
    calls = 0

    def count(frame: FrameType, what: str, _: object) -> None:
        nonlocal calls
        calls += what == "call" and frame.f_code.co_filename == yaml_core.__file__

    sys.setprofile(count)
    try:
        read_yaml(text)
    finally:
        sys.setprofile(None)
    assert calls < 100

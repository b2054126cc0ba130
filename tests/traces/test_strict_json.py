"""JSON within bounds; whatever is wrong is one error."""

from __future__ import annotations

import math
from typing import Any

import pytest

from loramux_traces.strict_json import JsonError, parse_json


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}),
        ("9" * 5000, math.inf),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ("[" * 64 + "]" * 64, None),
    ],
)
def test_what_is_read(text: str, value: Any) -> None:
    assert value is None or parse_json(text) == value
    parse_json(text)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "not JSON"),
        ('{\n"a": }', 2, "not JSON"),
        ("NaN", 0, "NaN is not a JSON number"),
        ('{"b": {"a": 1, "a": 2}}', 0, "key 'a' is given twice"),
        ("{" + ",".join(f'"k{i % 30_000}": 1' for i in range(60_000)) + "}", 0, "key 'k0' is given twice"),
        ("[" * 65 + "]" * 65, 0, "nested too deeply"),
        ("[" * 100_000, 0, "nested too deeply"),
        ('{"a": "\\ud800"}', 0, "half a character"),
    ],
)
def test_what_is_refused(text: str, line: int, said: str) -> None:
    with pytest.raises(JsonError) as caught:
        parse_json(text)
    assert said in caught.value.said
    assert caught.value.line == line

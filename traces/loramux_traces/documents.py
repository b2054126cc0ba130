"""Read jobs from JSON, JSON lines and YAML.

The result is (line, mapping) pairs, which go through the same validation as CSV rows. A file is a
list of jobs, or a mapping with `jobs` and optionally `provenance`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import yaml
from yaml.reader import ReaderError

from loramux_traces.allowed import FREE_PREFIX
from loramux_traces.errors import printable
from loramux_traces.problems import Problems
from loramux_traces.wholes import whole_number

Items = Iterator[tuple[int, Any]]
_TEXT_COLUMNS: Final = frozenset(
    ("job_id", "base_model", "ref_gpu", "user", "group", "dataset", "length_dist", "method", "dtype", "target_modules")
)
_BLANK: Final = re.compile(r"[ \t\r\n]*")
_NOT_A_LIST: Final = "must be a list of jobs, or a mapping with `jobs`"


class _DuplicateKeyError(ValueError):
    """A JSON object names one key twice, and it is unknown which value was meant."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKeyError(next(name for name in names if names.count(name) > 1))
    return result


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_int=whole_number)


def as_row(item: Any) -> dict[str, Any] | None:
    """Return `item` as a row, or None if it is no mapping.

    Nulls and x_ keys are left out, and numbers in columns of names are turned into text.
    """
    if not isinstance(item, dict):
        return None
    row: dict[str, Any] = {}
    for key, value in item.items():
        name = str(key)
        if value is None or name.startswith(FREE_PREFIX):
            continue
        if isinstance(value, bool):
            if name not in _TEXT_COLUMNS and name != "recompute":
                value = str(value).lower()  # pydantic would take true for the number 1
        elif isinstance(value, int) and name in _TEXT_COLUMNS and value.bit_length() < 256:
            value = str(value)
        elif isinstance(value, str):
            value = value.strip()
            if not value:
                continue
        row[name] = value
    return row


class _JsonCursor:
    """A `_JsonCursor` decodes a JSON text value by value, so that the line of each job is known."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self._counted = 0

    def peek(self) -> str:
        """Return the next character that is not blank, or '' at the end.

        The position and the line count move to that character.
        """
        match = _BLANK.match(self.text, self.at)
        self.at = match.end() if match else self.at
        self.line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self.text[self.at : self.at + 1]

    def expect(self, characters: str) -> str:
        """Step over one of `characters` and return it.

        Raises JSONDecodeError where the next character is none of them.
        """
        found = self.peek()
        if not found or found not in characters:
            raise json.JSONDecodeError(f"expected {' or '.join(characters)}", self.text, self.at)
        self.at += 1
        return found

    def value(self) -> Any:
        """Decode one value and step over it."""
        self.peek()
        value, self.at = _DECODER.raw_decode(self.text, self.at)
        return value

    def array(self) -> Items:
        """Yield the values of an array, each with the line it begins on."""
        self.expect("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            self.peek()
            line = self.line
            yield line, self.value()
            if self.expect(",]") == "]":
                return


def _json_items(text: str, provenance: list[str], rows_key: str) -> Items:
    cursor = _JsonCursor(text)
    if cursor.peek() != "{":
        yield from cursor.array()
    else:
        cursor.expect("{")
        done = cursor.peek() == "}"
        cursor.at += done
        while not done:
            key = cursor.value()
            cursor.expect(":")
            if key == rows_key:
                yield from cursor.array()
            else:
                value = cursor.value()
                if key == "provenance" and isinstance(value, str):
                    provenance.append(value)
            done = cursor.expect(",}") == "}"
    if cursor.peek():
        raise json.JSONDecodeError("expected the end of the file", cursor.text, cursor.at)


def _say(error: Exception) -> str:
    if isinstance(error, _DuplicateKeyError):
        return f"key {str(error)[:80]!r} is given twice in one object"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg}"
    if "int_max_str_digits" in str(error):
        return "a number has thousands of digits"
    return f"not readable: {printable(' '.join(str(error).split()), 200)}"


def json_items(text: str, problems: Problems, provenance: list[str], *, rows_key: str = "jobs") -> Items:
    """Yield the jobs of a JSON document.

    The document is a list, or an object that holds the list under `rows_key`. A provenance that is
    found on the way is appended to `provenance`.
    """
    line = 1
    try:
        for line, item in _json_items(text, provenance, rows_key):
            yield line, item
    except (ValueError, RecursionError) as error:
        at = error.lineno if isinstance(error, json.JSONDecodeError) else line
        problems.add(at, "", "", _say(error))


def jsonl_items(lines: Iterable[str], problems: Problems, provenance: list[str]) -> Items:
    """Yield the jobs of a JSON-lines file.

    A line that holds only `provenance` says where the others come from.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item, end = _DECODER.raw_decode(line.strip())
            if end != len(line.strip()):
                raise json.JSONDecodeError("expected one object a line", line, end)
        except (ValueError, RecursionError) as error:
            problems.add(number, "", "", _say(error))
            continue
        if isinstance(item, dict) and set(item) == {"provenance"}:
            provenance.append(str(item["provenance"]))
        else:
            yield number, item


def yaml_items(text: str, problems: Problems, provenance: list[str]) -> Items:
    """Yield the jobs of a YAML document (safe constructors only: no Python objects)."""
    line = 1
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if isinstance(root, yaml.MappingNode):
            entries = {loader.construct_object(k, deep=True): v for k, v in root.value}
            if isinstance(entries.get("provenance"), yaml.ScalarNode):
                provenance.append(str(entries["provenance"].value))
            root = entries.get("jobs")
        if not isinstance(root, yaml.SequenceNode):
            problems.add(1, "", "", _NOT_A_LIST)
            return
        for node in root.value:
            line = node.start_mark.line + 1
            yield line, loader.construct_object(node, deep=True)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.add(mark.line + 1 if mark else line, "", "", f"not YAML: {error.problem or error.context}")
    except ReaderError as error:
        problems.add(text.count("\n", 0, error.position) + 1, "", "", "must be text: this line has a control character")
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError, RecursionError) as error:
        # TypeError: an unhashable key; ValueError and AttributeError: a date or number that YAML
        # cannot build.
        problems.add(line, "", "", f"not YAML: {_say(error)}")

"""Read jobs from JSON, JSON lines and YAML.

The result is (line, mapping) pairs, which go through the same validation as CSV rows. A file is a
list of jobs, or a mapping with `jobs` and optionally `provenance`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, Final

from loramux_traces.allowed import FREE_PREFIX
from loramux_traces.errors import InvalidInputError, Problem
from loramux_traces.files import MAX_SMALL, read_text
from loramux_traces.job_types import is_absent, plain_text, without_blanks
from loramux_traces.problems import Problems
from loramux_traces.strict_json import ROW_DECODER, DuplicateKeyError, JsonError, is_deep, parse_json, say
from loramux_traces.yaml_core import Document, YamlError, read_yaml

Items = Iterator[tuple[int, Any]]
#: Called with the line, name and value of each key of a document that stands beside its rows.
OnKey = Callable[[int, str, Any], None]
_TEXT_COLUMNS: Final = frozenset(
    ("job_id", "base_model", "ref_gpu", "user", "group", "dataset", "length_dist", "method", "dtype", "target_modules")
)
_BLANK: Final = re.compile(r"[ \t\r\n]*")
_NOT_A_LIST: Final = "must be a list of jobs, or a mapping with `jobs`"


def as_row(item: Any) -> dict[str, Any] | None:
    """Return `item` as a row, or None if it is no mapping.

    Nulls and x_ keys are left out, and numbers in columns of names are turned into text.
    """
    if not isinstance(item, dict):
        return None
    row: dict[str, Any] = {}
    for key, value in item.items():
        name = str(key)
        if name.startswith(FREE_PREFIX) or is_absent(value):
            continue
        if name in _TEXT_COLUMNS:
            value = plain_text(value)
        elif isinstance(value, bool) and name != "recompute":
            value = str(value).lower()  # pydantic would take true for the number 1
        row[name] = without_blanks(value)
    return row


def _shallow(value: Any) -> Any:
    """Return a decoded value.

    Raises RecursionError where it is nested too deeply for those who walk it later.
    """
    if isinstance(value, dict) and not any(isinstance(member, dict | list) for member in value.values()):
        return value
    if is_deep(value):
        raise RecursionError
    return value


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
        value, self.at = ROW_DECODER.raw_decode(self.text, self.at)
        return _shallow(value)

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


def _key_of_a_trace(problems: Problems) -> OnKey:
    """Return what notes keys beside the jobs: nothing that they say would reach a job."""

    def note(line: int, key: str, value: Any) -> None:
        if key == "provenance":
            problems.add(line, key, value, "must be text")
        else:
            hint = "; write it into every job" if key == "defaults" else ""
            problems.add(line, key, value, f"is not known: a trace has jobs and provenance, and {FREE_PREFIX}...{hint}")

    return note


def _json_items(text: str, provenance: list[str], rows_key: str, on_key: OnKey) -> Items:
    cursor = _JsonCursor(text)
    if cursor.peek() != "{":
        yield from cursor.array()
    else:
        cursor.expect("{")
        done = cursor.peek() == "}"
        cursor.at += done
        seen: set[str] = set()
        while not done:
            cursor.peek()
            line = cursor.line
            key = str(cursor.value())
            if key in seen:
                raise DuplicateKeyError(key)
            seen.add(key)
            cursor.expect(":")
            if key == rows_key:
                yield from cursor.array()
            else:
                value = cursor.value()
                if key == "provenance" and isinstance(value, str):
                    provenance.append(value)
                elif not key.startswith(FREE_PREFIX) and not is_absent(value):
                    on_key(line, key, value)
            done = cursor.expect(",}") == "}"
    if cursor.peek():
        raise json.JSONDecodeError("expected the end of the file", cursor.text, cursor.at)


def _is_json_lines(text: str) -> bool:
    """Return whether a text is surely JSON lines: a whole object on the first line, then more."""
    blank = _BLANK.match(text)
    start = blank.end() if blank else 0
    end = text.find("\n", start)
    if end < 0 or text[start] != "{" or _BLANK.fullmatch(text, end):
        return False
    first = text[start:end].rstrip()
    try:
        return ROW_DECODER.raw_decode(first)[1] == len(first)
    except (ValueError, RecursionError):
        return False


def json_items(
    text: str,
    problems: Problems,
    provenance: list[str],
    *,
    rows_key: str = "jobs",
    on_key: OnKey | None = None,
    limit: int | None = None,
) -> Items:
    """Yield the jobs of a JSON document, at most `limit`.

    The document is a list, or an object that holds the list under `rows_key`. A provenance that is
    found on the way is appended to `provenance`, and every other key that has a value is given to
    `on_key` (None: is a problem), those after the list too. JSON lines are read as such: many
    tools write them under the name of `.json`.
    """
    if _is_json_lines(text):
        yield from islice(jsonl_items(StringIO(text), problems, provenance), limit)
        return
    line = 1
    try:
        items = _json_items(text, provenance, rows_key, on_key or _key_of_a_trace(problems))
        for count, (line, item) in enumerate(items):
            if limit is None or count < limit:
                yield line, item
    except (ValueError, RecursionError) as error:
        at = error.lineno if isinstance(error, json.JSONDecodeError) else line
        problems.add(at, "", "", say(error))


def jsonl_items(lines: Iterable[str], problems: Problems, provenance: list[str]) -> Items:
    """Yield the jobs of a JSON-lines file.

    A line that holds only `provenance` says where the others come from.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item, end = ROW_DECODER.raw_decode(line.strip())
            _shallow(item)
            if end != len(line.strip()):
                raise json.JSONDecodeError("expected one object a line", line, end)
        except (ValueError, RecursionError) as error:
            problems.add(number, "", "", say(error))
            continue
        if isinstance(item, dict) and set(item) == {"provenance"}:
            provenance.append(str(item["provenance"]))
        else:
            yield number, item


def yaml_items(text: str, problems: Problems, provenance: list[str]) -> Items:
    """Yield the jobs of a YAML document (see `yaml_core`: plain data, within bounds)."""
    try:
        document = read_yaml(text)
    except YamlError as error:
        problems.add(error.line, "", "", error.said)
        return
    rows = document.value
    if isinstance(rows, dict):
        if isinstance(rows.get("provenance"), str):
            provenance.append(rows["provenance"])
        note = _key_of_a_trace(problems)
        for key, value in rows.items():
            known = key == "jobs" or (key == "provenance" and isinstance(value, str))
            if not known and not str(key).startswith(FREE_PREFIX) and not is_absent(value):
                note(document.line_of((key,)), str(key), value)
        rows = rows.get("jobs")
    if isinstance(rows, list):
        yield from zip(document.lines(rows), rows, strict=True)
    else:
        problems.add(1, "", "", _NOT_A_LIST)


def read_document(path: Path | str, most_bytes: int = MAX_SMALL, what: str = "this file") -> Document:
    """Return what a YAML or JSON file holds, JSON where its name ends with .json.

    Raises InvalidInputError with the line for a file that is too large, not text or not YAML.
    """
    text = read_text(path, most_bytes, what)
    try:
        if str(path).removesuffix(".gz").endswith(".json"):
            return Document(parse_json(text), {})
        return read_yaml(text)
    except (YamlError, JsonError) as error:
        problem = Problem(file=str(path), line=error.line, column="", value="", allowed=error.said)
        raise InvalidInputError([problem]) from error

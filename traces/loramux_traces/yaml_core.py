"""Read YAML as its core schema has it (YAML 1.2), within bounds.

PyYAML alone reads YAML 1.1: there `no` is false, `1e-4` is a text, `010` is 8 and `1:30` is 90, and
a tag such as `!!timestamp x` ends in an exception of its own. Here a plain scalar is null, true,
false, a number or else text; `1_000`, `010` and dates stay the text that they are. Only the parser
is PyYAML's. What a file can do with aliases, merge keys, nesting and long numbers is bounded, and
whatever is wrong with it is one error with its line.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final

import yaml
from yaml.reader import ReaderError

from loramux_traces.wholes import WrittenInt, whole_number

MAX_DEPTH: Final = 64
"""Lists and mappings inside each other."""
_FREE: Final = 1_000
_TIMES: Final = 100
_MOST: Final = 1_000_000
"""Values that aliases may add: so many whatever the file, or so many times its own, never more."""
_TEXT_UNIT: Final = 32
"""Characters of a text that count as one value more."""
_KNOWN: Final = 1_000
"""Plain scalars of a document that are looked up when they come again."""
_PREFIX: Final = "tag:yaml.org,2002:"
_WORDS: Final[dict[str, bool | None]] = {
    "": None,
    "~": None,
    **dict.fromkeys(("null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_BASED: Final = re.compile(r"0(?:o[0-7]+|x[0-9a-fA-F]+)")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL: Final = re.compile(r"([-+]?)\.(?:(inf|Inf|INF)|(nan|NaN|NAN))")
_LEADING_ZERO: Final = re.compile(r"[-+]?0[0-9]+")
_NUMBER_STARTS: Final = frozenset("0123456789+-.")
_LONGEST_BASED: Final = 3_000
"""Digits of a hexadecimal number that Python may write out in decimal."""
_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlError(ValueError):
    """A YamlError says what is wrong with a document, and on which line."""

    def __init__(self, line: int, said: str) -> None:
        super().__init__(said)
        self.line, self.said = line, said


class Document:
    """A Document is what a YAML text holds, and the line on which each part of it begins."""

    def __init__(self, value: Any, lines: dict[int, array[int]]) -> None:
        self.value = value
        self._lines = lines

    def lines(self, value: Any) -> Sequence[int]:
        """Return the lines of the members of a list or mapping in the document, in their order."""
        return self._lines.get(id(value), ())

    def line_of(self, path: Sequence[str | int]) -> int:
        """Return the line of the member at `path`, or of the last one on the way that is there.

        It is 0 where not even the first is.
        """
        return self._walk(path)[0]

    def has(self, path: Sequence[str | int]) -> bool:
        """Return whether there is a member at `path`."""
        return self._walk(path)[1] == len(path)

    def _walk(self, path: Sequence[str | int]) -> tuple[int, int]:
        """Return (the line of the last member on the way that is there, how many of them are)."""
        value, line, found = self.value, 0, 0
        for part in path:
            lines = self.lines(value)
            if isinstance(value, dict) and str(part) in value:
                index, value = list(value).index(str(part)), value[str(part)]
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                index, value = part, value[part]
            else:
                break
            line, found = lines[index] if index < len(lines) else line, found + 1
        return line, found


class _Open:
    """An _Open is a list or mapping whose end has not been read."""

    __slots__ = ("anchor", "before", "is_map", "key", "key_line", "line", "lines", "merged", "value")

    def __init__(self, value: Any, is_map: bool, anchor: str | None, line: int, before: int) -> None:
        self.value, self.is_map, self.anchor, self.line, self.before = value, is_map, anchor, line, before
        self.lines: array[int] = array("q")
        self.key: str | None = None
        self.key_line = 0
        self.merged: list[Any] = []


_MERGE: Final = object()


class _Builder:
    """A _Builder makes a value of the events of one document."""

    def __init__(self) -> None:
        self.lines: dict[int, array[int]] = {}
        self.root: Any = None
        self.line = 1
        """Line of the last event."""
        self._stack: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int] | None] = {}
        self._own = 0
        self._added = 0
        self._documents = 0
        self._plain: dict[str, Any] = {}
        """What plain scalars are, of those that were read first."""

    def build(self, next_event: Callable[[], Any]) -> None:
        """Take all events.

        Raises YamlError for what the core schema does not have, or a bound that is passed.
        """
        # Half a million plain scalars fit in 1 MiB, and a parser's event of one costs 1.0 us: what
        # is done here for each is done in place (five calls took 1.7 us more, this takes 0.4).
        stack, known = self._stack, self._plain
        top: _Open | None = None
        while (event := next_event()) is not None:
            kind = type(event)
            line = self.line = event.start_mark.line + 1
            if kind is yaml.ScalarEvent:
                text = event.value
                if top is None or top.merged or event.tag is not None or event.anchor is not None or text == "<<":
                    self._scalar(event, line)
                    continue
                if top.key is None and top.is_map:
                    if text in top.value:
                        raise YamlError(line, _twice(text))
                    top.key, top.key_line = text, line
                else:
                    value = text
                    if event.implicit[0]:
                        value = known[text] if text in known else self._learn(text)
                    if top.is_map:
                        top.value[top.key] = value
                        top.lines.append(top.key_line)
                        top.key = None
                    else:
                        top.value.append(value)
                        top.lines.append(line)
                self._own += 1 + len(text) // _TEXT_UNIT
                continue
            if kind is yaml.SequenceEndEvent or kind is yaml.MappingEndEvent:
                self._end()
            elif kind is yaml.SequenceStartEvent or kind is yaml.MappingStartEvent:
                self._begin(event, line, is_map=kind is yaml.MappingStartEvent)
            elif kind is yaml.AliasEvent:
                self._alias(event.anchor, line)
            elif kind is yaml.DocumentStartEvent:
                self._documents += 1
                if self._documents > 1:
                    raise YamlError(line, "must hold one document, not several")
            elif kind is yaml.StreamEndEvent:
                return
            top = stack[-1] if stack else None

    def _learn(self, text: str) -> Any:
        value = _plain(text)
        if len(self._plain) < _KNOWN and len(text) <= _TEXT_UNIT:
            self._plain[text] = value
        return value

    def _wants_key(self) -> bool:
        top = self._stack[-1] if self._stack else None
        return top is not None and top.is_map and top.key is None

    def _scalar(self, event: Any, line: int) -> None:
        text: str = event.value
        self._own += 1 + len(text) // _TEXT_UNIT
        top = self._stack[-1] if self._stack else None
        if top is not None and top.is_map and top.key is None:
            merge = text == "<<" and event.implicit[0]
            if not merge and text in top.value:
                raise YamlError(line, _twice(text))
            top.key, top.key_line = text, line
            if merge:
                top.key = "<<merge"
                top.merged.append(_MERGE)
            return
        value = _plain(text) if event.implicit[0] and event.tag is None else _tagged(event.tag, text, line)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, 1 + len(text) // _TEXT_UNIT)
        self._put(value, line)

    def _begin(self, event: Any, line: int, *, is_map: bool) -> None:
        stack = self._stack
        if stack and stack[-1].is_map and stack[-1].key is None:
            raise YamlError(line, "a key must be text, not a list or mapping")
        if event.tag is not None and event.tag not in ("!", _PREFIX + ("map" if is_map else "seq")):
            raise YamlError(line, _no_tag(event.tag))
        if len(stack) >= MAX_DEPTH:
            raise YamlError(line, f"is nested too deeply (over {MAX_DEPTH})")
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._own += 1
        stack.append(_Open({} if is_map else [], is_map, event.anchor, line, self._own + self._added))

    def _end(self) -> None:
        top = self._stack.pop()
        value = top.value
        for source in top.merged:
            for key, member in source.items():
                if key not in value:
                    value[key] = member
                    top.lines.append(top.line)
        self.lines[id(value)] = top.lines
        if top.anchor is not None:
            self._anchors[top.anchor] = (value, 1 + self._own + self._added - top.before)
        above = self._stack[-1] if self._stack else None
        if above is None or above.is_map:
            self._put(value, top.line)
        else:
            above.value.append(value)
            above.lines.append(top.line)

    def _alias(self, name: str, line: int) -> None:
        if self._wants_key():
            raise YamlError(line, "a key must be text, not an alias")
        if name not in self._anchors:
            raise YamlError(line, f"alias *{name[:40]} has no anchor &{name[:40]} before it")
        found = self._anchors[name]
        if found is None:
            raise YamlError(line, f"alias *{name[:40]} stands inside its own anchor")
        self._own += 1
        self._added += found[1]
        if self._added > min(_MOST, _FREE + _TIMES * self._own):
            raise YamlError(line, f"aliases make this more than {_TIMES} times as long as the file, or too long")
        self._put(found[0], line)

    def _put(self, value: Any, line: int) -> None:
        if not self._stack:
            self.root = value
            return
        top = self._stack[-1]
        if not top.is_map:
            top.value.append(value)
            top.lines.append(line)
            return
        key, top.key = top.key, None
        if top.merged and top.merged[-1] is _MERGE:
            top.merged.pop()
            sources = value if isinstance(value, list) else [value]
            if not all(isinstance(source, dict) for source in sources):
                raise YamlError(line, "<< takes a mapping or a list of mappings")
            top.merged.extend(sources)
        elif key is not None:
            top.value[key] = value
            top.lines.append(top.key_line)


def _twice(key: str) -> str:
    return f"key {key[:80]!r} is given twice in one mapping"


def _plain(text: str) -> Any:
    """Return a plain scalar as the core schema reads it."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _NUMBER_STARTS:
        return text
    if _INT.fullmatch(text):
        number = whole_number(text)
        return WrittenInt.of(number, text) if text[0] == "+" and isinstance(number, int) else number
    if _LEADING_ZERO.fullmatch(text):
        return text  # 007 is a name, and where a number is wanted it is 7, as in a CSV file
    if _FLOAT.fullmatch(text):
        return float(text)
    if _BASED.fullmatch(text):
        if len(text) > _LONGEST_BASED:
            return float("inf")
        return WrittenInt.of(int(text[2:], 8 if text[1] == "o" else 16), text)
    if special := _SPECIAL.fullmatch(text):
        return float(special[1] + "inf" if special[2] else "nan")
    return text


def _tagged(tag: str | None, text: str, line: int) -> Any:
    """Return a scalar that is quoted or has a tag."""
    if tag in (None, "!", _PREFIX + "str"):
        return text
    value = _plain(text)
    name = tag.removeprefix(_PREFIX) if tag is not None and tag.startswith(_PREFIX) else ""
    right = {
        "null": value is None,
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, int | float) and not isinstance(value, bool),
    }
    if name not in right:
        raise YamlError(line, _no_tag(tag or ""))
    if not right[name]:
        raise YamlError(line, f"{text[:80]!r} is no !!{name}")
    return float(value) if name == "float" and abs(value) < 1e300 else value


def _no_tag(tag: str) -> str:
    short = "!!" + tag.removeprefix(_PREFIX) if tag.startswith(_PREFIX) else tag
    return f"tag {short[:80]} is not taken: leave it out (known: !!str, !!int, !!float, !!bool, !!null, !!map, !!seq)"


def read_yaml(text: str) -> Document:
    """Return the one document of a YAML text.

    Raises YamlError, and nothing else, for whatever is wrong with it.
    """
    builder = _Builder()
    loader = None
    try:
        loader = _Loader(text)
        builder.build(loader.get_event)
    except YamlError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(
            mark.line + 1 if mark else builder.line, f"not YAML: {error.problem or error.context}"
        ) from error
    except ReaderError as error:
        where = text.count("\n", 0, error.position) + 1
        raise YamlError(where, "must be text: this line has a control character") from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError, RecursionError) as error:
        raise YamlError(builder.line, f"not YAML: {' '.join(str(error).split())[:200]}") from error
    finally:
        if loader is not None:
            loader.dispose()
    return Document(builder.root, builder.lines)

"""Make a broken document of a valid one, the same from the same random numbers."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any, Final

import yaml

NUMBERS: Final = (
    "0", "-1", "1", "2", "3.5", "1e-4", "1e-13", "1e30", "1e400", "-1e400", "1" + "0" * 400, "9" * 5000, "0x" + "f" * 5000,
    "010", "1:30", "1_000", "4096", "4097", "1024", "1025", "65537", "1000000000", "1000000001", str(2**53), str(2**63),
    "-0.0", ".inf", "-.inf", ".nan", "NaN", "Infinity", "1e-320", "0.9999999999999999", "00", "+5", "5.", ".5",
)  # fmt: skip
WORDS: Final = (
    "", "''", '""', "null", "~", "true", "no", "on", "[]", "{}", "[[]]", "{a: 1}", '{"a": 1}', "!!timestamp x", "!!bool x",
    '!!int ""', "!!python/object:os.system x", "&a", "*a", "&a [*a]", "<<: *a", "2020-01-01", "../../etc/passwd", "/dev/zero",
    "\x00", "\ufeff", "\u2028", "\u202e", "\x85", "\x1b[31m", "\ud83d\ude00", "\\ud83d", "\\u0000", "a" * 300, "é" * 40, "#", ": ",
    "- ", "? ", "|", ">", "%", "@", "`", "\t", "\r", "\r\n", ",", ";", '"', "'", "{", "}", "[", "]", "{%", "{{x}}", "=1+1",
)  # fmt: skip
VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2, 1.5, 1e-13, 1e308, 10**18, 10**30, 10**400, 2**53, 2**63, 4097, 1025, 65537,
    float("inf"), float("nan"), "", " ", "a", "alice ", "no", "1_0", "\x00", "\u202ex", "\ud800", "x" * 70, "x" * 70_000,
    "../x", "/dev/zero", [], {}, [[]], [None], [1, "a"], {"": 1}, {"a": {"b": []}}, {"path": "x"}, [0] * 2000,
)  # fmt: skip
_Dumper: Final = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_TOKEN: Final = re.compile(rb"[A-Za-z_][A-Za-z0-9_.-]*|-?[0-9][0-9.eE+-]*|\"[^\"\n]*\"|[^\sA-Za-z0-9]")
_NUMBER: Final = re.compile(rb"-?[0-9][0-9.eE+-]*")
LONGEST: Final = 1 << 20
"""Bytes of the longest document that is made."""


def _span(rng: random.Random, data: bytes, most: int = 40) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.randrange(most))


def _put(data: bytes, span: tuple[int, int], text: bytes) -> bytes:
    return data[: span[0]] + text + data[span[1] :]


def _one_of(rng: random.Random, data: bytes, pattern: re.Pattern[bytes]) -> tuple[int, int]:
    found = [match.span() for match in pattern.finditer(data)]
    return rng.choice(found) if found else _span(rng, data)


def _text(rng: random.Random) -> bytes:
    return rng.choice(WORDS + NUMBERS).encode("utf-8", "surrogatepass")


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(5)
    if kind == 0:
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 1:
        lines[at:at] = [lines[other]] * rng.choice((1, 1, 2, 50))
    elif kind == 2:
        del lines[at]
    elif kind == 3:
        lines[at] = rng.choice((b"  ", b" ", b"\t", b"- ")) + lines[at]
    else:
        lines[at] = lines[at].lstrip()
    return b"\n".join(lines)


def _wrapped(rng: random.Random, data: bytes) -> bytes:
    begin, end = rng.choice(
        ((b"[", b"]"), (b"{a: ", b"}"), (b'{"a": ', b"}"), (b"- ", b""), (b"&a [*a, ", b"]"), (b'"', b'"'))
    )
    times = rng.choice((1, 2, 70, 2000))
    span = _one_of(rng, data, _TOKEN)
    return _put(data, span, begin * times + data[span[0] : span[1]] + end * rng.choice((times, times, 0)))


def _bomb(rng: random.Random, data: bytes) -> bytes:
    width = rng.randrange(2, 12)
    lines = ["x0: &x0 [" + ", ".join(["lol"] * width) + "]"]
    lines += [f"x{i}: &x{i} [" + ", ".join([f"*x{i - 1}"] * width) + "]" for i in range(1, rng.randrange(2, 14))]
    return "\n".join(lines).encode() + b"\n" + _put(data, _one_of(rng, data, _TOKEN), f"*x{len(lines) - 1}".encode())


def _encoded(rng: random.Random, data: bytes) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return b"\xef\xbb\xbf" + data
    if kind == 1:
        return data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32", "utf-7")), "replace")
    return data.replace(b"\n", b"\r\n" if kind == 2 else b"\r")


_BYTES: Final[tuple[Callable[[random.Random, bytes], bytes], ...]] = (
    _flip,
    _lines,
    _wrapped,
    _bomb,
    _encoded,
    lambda rng, data: _put(data, _one_of(rng, data, _NUMBER), rng.choice(NUMBERS).encode()),
    lambda rng, data: _put(data, _one_of(rng, data, _NUMBER), rng.choice(NUMBERS).encode()),
    lambda rng, data: _put(data, _one_of(rng, data, _TOKEN), _text(rng)),
    lambda rng, data: _put(data, _one_of(rng, data, _TOKEN), _text(rng)),
    lambda rng, data: _put(data, _one_of(rng, data, _TOKEN), data[slice(*_one_of(rng, data, _TOKEN))]),
    lambda rng, data: _put(data, (at := rng.randrange(len(data) + 1), at), _text(rng)),
    lambda rng, data: _put(data, _span(rng, data), b""),
    lambda rng, data: _put(
        data, (at := rng.randrange(len(data) + 1), at), data[slice(*_span(rng, data))] * rng.choice((1, 3, 99))
    ),
    lambda rng, data: data[: rng.randrange(len(data) + 1)],
    lambda rng, data: _put(data, _span(rng, data, 4), rng.randbytes(rng.randrange(1, 5))),
)


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return the bytes with one to six faults."""
    for _ in range(min(6, 1 + int(rng.expovariate(0.8)))):
        data = rng.choice(_BYTES)(rng, data)[:LONGEST]
    return data


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value in a document."""
    found: list[tuple[Any, Any]] = []
    open_ = [value]
    while open_:
        group = open_.pop()
        keys = list(group) if isinstance(group, dict) else range(len(group))
        found += [(group, key) for key in keys]
        open_ += [group[key] for key in keys if isinstance(group[key], dict | list)]
    return found


def _nested(rng: random.Random, value: Any) -> Any:
    for _ in range(rng.choice((1, 3, 70, 300))):
        value = [value] if rng.randrange(2) else {"a": value}
    return value


def _renamed(rng: random.Random, key: Any) -> str:
    name = str(key)
    return rng.choice(("", "x", f"{name}s", name[1:], name.upper(), "\x00", "<<"))


def mutated_value(rng: random.Random, document: Any) -> Any:
    """Return the document with one to four values of other types, keys or sizes."""
    document = copy.deepcopy(document)
    for _ in range(min(4, 1 + int(rng.expovariate(1.2)))):
        places = _places(document)
        if not places:
            break
        group, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind <= 3:
            group[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 4:
            del group[key]
        elif kind == 5:
            group[key] = _nested(rng, group[key])
        elif kind == 6 and isinstance(group, dict):
            group[_renamed(rng, key)] = group[key]
        else:
            other, other_key = rng.choice(places)
            with contextlib.suppress(RecursionError):  # of a value that is nested deeply by now
                group[key] = copy.deepcopy(other[other_key])
    return document


def as_json(document: Any) -> bytes:
    """Return the document as JSON, NaN and halves of characters included."""
    try:
        return json.dumps(document).encode("utf-8", "surrogatepass")
    except RecursionError:
        return b"["


def as_yaml(document: Any) -> bytes:
    """Return the document as YAML in blocks, or as JSON where PyYAML cannot write it."""
    try:
        text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        return text.encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError, RecursionError):
        return as_json(document)

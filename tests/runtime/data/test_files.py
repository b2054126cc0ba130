"""Files that a stranger hands us.

Read in every form, or refused with every bad row and never a traceback.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import json
import os
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loramux_runtime.data import DataConfig, Tokenizer, load_data
from loramux_runtime.data.turns import MAX_TEXT
from loramux_traces.errors import InvalidInputError, UsageError
from loramux_traces.problems import CAP

Write = Callable[..., Path]
ROWS = [{"prompt": f"q{i}", "completion": f' a{i}, \n"b" '} for i in range(5)]


def tokens(path: Path, tokenizer: Tokenizer, **settings: Any) -> list[list[int]]:
    data = load_data(DataConfig(path=path, **settings), tokenizer, vocab_size=259, seed=0)
    return [row.tolist() for row, _ in data.train]


def refused(path: Path, tokenizer: Tokenizer, **settings: Any) -> InvalidInputError:
    with pytest.raises(InvalidInputError) as caught:
        tokens(path, tokenizer, **settings)
    assert caught.value.exit_code == 2
    return caught.value


def csv_text() -> bytes:
    body = "".join(f'{r["prompt"]},"{r["completion"].replace(chr(34), chr(34) * 2)}"\r\n' for r in ROWS)
    return ("prompt,completion\r\n" + body).encode()


def test_one_data_set_in_every_form_gives_the_same_rows(write: Write, bytes_: Tokenizer) -> None:
    expected = tokens(write(ROWS), bytes_)
    assert len(expected) == 5 and expected[0][-4:] == [*b'b" ', 257]
    forms = {
        "a.json": json.dumps(ROWS, indent=1).encode(),
        "b.json": b"\xef\xbb\xbf" + json.dumps({"version": 1, "data": ROWS}).encode(),
        "c.csv": csv_text(),
        "d.csv": b"\xef\xbb\xbf" + csv_text(),
        "e.jsonl.gz": gzip.compress("\n".join(map(json.dumps, ROWS)).encode()),
        "lines.json": b"\n" + "\n".join(map(json.dumps, ROWS)).encode(),
        "f.NDJSON": ("\r\n\r\n".join(map(json.dumps, ROWS))).encode(),
    }
    for name, content in forms.items():
        assert tokens(write(content, name), bytes_) == expected, name
    config = DataConfig(path=write(forms["b.json"], "b.json"))
    report = load_data(config, bytes_, vocab_size=300, seed=0).report
    assert str(report).endswith("columns not used: version of the file (1)")
    assert tokens(write(csv_text(), "rows.txt"), bytes_, file_format="csv") == expected


def test_quotes_after_a_blank_are_no_text(write: Write, bytes_: Tokenizer) -> None:
    rows = [{"prompt": "a", "completion": "b, c"}, {"prompt": " d", "completion": ' "e" '}]
    text = b'prompt, completion\na, "b, c"\n d," ""e"" "\n'
    assert tokens(write(text, "blank.csv"), bytes_) == tokens(write(rows), bytes_)
    said = ':2: a quote (") after a blank: take the blank before it away'
    assert said in str(refused(write(b'prompt,completion\na, "b" c\n', "odd.csv"), bytes_))


def test_parquet_says_what_to_install(write: Write, bytes_: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match="pip install pyarrow"):
        tokens(write(b"PAR1", "rows.parquet"), bytes_)


def test_parquet(write: Write, bytes_: Tokenizer, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert tokens(tmp_path / "rows.parquet", bytes_) == tokens(write(ROWS), bytes_)
    chats = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    parquet.write_table(arrow.Table.from_pylist(chats), tmp_path / "chats.parquet")
    assert tokens(tmp_path / "chats.parquet", bytes_) == tokens(write(chats), bytes_)
    parquet.write_table(arrow.table({"text": ["a", None, "c"]}), tmp_path / "holes.parquet")
    assert "holes.parquet:2: column text: is required" in str(refused(tmp_path / "holes.parquet", bytes_))
    whole = (tmp_path / "rows.parquet").read_bytes()
    for broken in (b"", b"PAR1", whole[:-9], whole[: len(whole) // 2]):
        refused(write(broken, "broken.parquet"), bytes_)
    for at in range(0, len(whole), 17):  # pyarrow does not notice every changed byte
        changed = write(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :], "changed.parquet")
        with contextlib.suppress(InvalidInputError):
            assert tokens(changed, bytes_)


def test_nested_columns_of_parquet(write: Write, bytes_: Tokenizer, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    path, text = tmp_path / "rows.parquet", arrow.string()
    turn = arrow.struct([("role", arrow.large_string()), ("content", text)])
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    expected = tokens(write([{"messages": turns}]), bytes_)
    for column in (
        arrow.array([turns], arrow.large_list(turn)),
        arrow.array([[list(one.items()) for one in turns]], arrow.list_(arrow.map_(text, text))),
    ):
        parquet.write_table(arrow.table({"messages": column}), path)
        assert tokens(path, bytes_) == expected
    choices = [("A", "x"), ("B", "y")]
    table = {"question": ["q"], "answer": ["A"], "choices": arrow.array([choices], arrow.map_(text, text))}
    parquet.write_table(arrow.table(table), path)
    assert tokens(path, bytes_) == tokens(write([{"question": "q", "answer": "A", "choices": dict(choices)}]), bytes_)
    others = {
        "price": arrow.array([Decimal("1.5")], arrow.decimal128(10, 2)),
        "at": arrow.array([1], arrow.timestamp("ns", tz="UTC")),
        "none": arrow.nulls(1),
        "raw": arrow.array([b"\xff"]),
    }
    parquet.write_table(arrow.table({"text": arrow.array(["a"]).dictionary_encode(), **others}), path)
    report = load_data(DataConfig(path=path), bytes_, vocab_size=259, seed=0).report
    assert str(report).endswith("columns not used: at (1), price (1), raw (1)")
    parquet.write_table(arrow.table({"text": others["price"]}), path)
    assert "column text: 'a Decimal'; must be text" in str(refused(path, bytes_))
    parquet.write_table(arrow.Table.from_arrays([arrow.array(["a"]), arrow.array(["b"])], names=["text", "text"]), path)
    assert "column text: is named twice" in str(refused(path, bytes_))
    parquet.write_table(
        arrow.table({"text": ["a"], "m": arrow.array([[("k", "1"), ("k", "2")]], arrow.map_(text, text))}), path
    )
    assert "not a readable Parquet file" in str(refused(path, bytes_))


def test_every_bad_row_is_listed_with_its_place(write: Write, bytes_: Tokenizer) -> None:
    path = write(
        [
            {"prompt": "q", "completion": "a"},
            {"prompt": "q"},
            '{"prompt": "q", "completion": NaN}',
            {"prompt": 5, "completion": "a"},
            {"prompt": "q", "completion": " \n"},
            [1, 2],
            '{"prompt": "q", "completion": "\\ud800"}',
            '{"prompt": "q", "prompt": "r", "completion": "a"}',
            "not json",
            {"prompt": "q", "input": ["x"], "completion": "a"},
        ]
    )
    assert str(refused(path, bytes_)).replace(str(path), "F").splitlines() == [
        "F:2: column completion: is required: text (completion)",
        "F:3: column completion: 'nan'; must be text",
        "F:4: column prompt: '5'; must be text",
        "F:5: column completion: ' \\n'; must not be empty",
        "F:6: 'a list'; a row must be a mapping of field names to values",
        "F:7: column completion: must be Unicode text (it holds half of a surrogate pair)",
        "F:8: key 'prompt' is given twice in one object",
        "F:9: not JSON: Expecting value",
        "F:10: column input: 'a list'; prompt and completion are learned as they stand: put it into prompt, or say "
        "format: instruction",
    ]


def test_bad_chats(write: Write, bytes_: Tokenizer) -> None:
    user, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    path = write(
        [
            {"messages": [user, answer]},
            {"messages": "hi"},
            {"messages": []},
            {"messages": [user]},
            {"messages": [user, {"role": "narrator", "content": "x"}, answer]},
            {"messages": [{"role": "user"}, answer]},
            {"messages": [user, {"role": "assistant", "content": ""}]},
            {"messages": [user, "a"]},
            {"messages": [user, {"role": ["user"], "content": "x"}]},
            {"messages": None},
        ]
    )
    said = str(refused(path, bytes_)).replace(str(path), "F")
    assert [line.split(" ")[0] for line in said.splitlines()] == [f"F:{i}:" for i in range(2, 11)]
    assert (
        "F:5: column messages[1].role: 'narrator'; must be one of system, developer, user, human, assistant, gpt"
        in said
    )
    assert "F:6: column messages[0].content: is required" in said
    assert "F:7: column messages[1].content: must not be empty" in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "has no rows"),
        ("a.json", b"", "expected ["),
        ("a.json", b"{}", "has no rows"),
        ("a.json", b'{"data": 3}', "expected ["),
        (
            "a.json",
            b'{"data": [{"text": "a"}],\n"system": "S"}',
            ":2: column system: 'S'; is not read: a JSON file is a list",
        ),
        ("a.json", b'{"eval": [{"text": "b"}], "data": [{"text": "a"}]}', ":1: column eval: 'a list'; is not read"),
        ("a.json", b'{"data": [{"text": "a"}], "more": [{"text": "b"}]}', ":1: column more: 'a list'; is not read"),
        ("a.json", b'{"text": "a"}\n{"text": 5}', ":2: column text: '5'; must be text"),
        ("a.json", b'{"text": "a"}\n', "column text: 'a'; is not read: a JSON file is a list of rows"),
        ("a.csv", b"", "has no rows"),
        ("a.csv", b"text\n", "has no rows"),
        ("a.csv", b"text,text\na,b\n", "is named twice"),
        ("a.csv", b"text,\na,b\n", "every column needs a name"),
        ("a.csv", b"prompt,answer\na\na,b,c\n", "1 cells"),
        ("a.csv", b'text\n"abc\n', "never closed"),
        ("a.csv", b"text\n" + b"x" * 200_000, "a cell may have at most"),
        (
            "a.csv",
            b"foo,bar\na,b\n",
            "its fields must hold messages|conversations|conversation|contents; or instruction|prompt|question and",
        ),
        ("a.jsonl", b'{"text": "a\0"}', "NUL"),
        ("a.json", b'[{"text": "\xff"}]', "must be UTF-8"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "UTF-16"),
        ("a.jsonl", b'{"text": "' + b"x" * (1 << 20) + b'"}', "a line may have at most"),
        ("a.json", b'[{"text": "' + b"x" * (MAX_TEXT + 1) + b'"}]', "may have at most 1048576 characters"),
        ("a.jsonl", b"[" * 100_000, "nested too deeply"),
        ("a.jsonl", b'{"text": 1' + b"0" * 5000 + b"}", "must be text"),
        ("a.jsonl.gz", b"\x1f\x8b junk", "cannot be read"),
        ("a.txt", b"text", "the name must end with one of .jsonl"),
    ],
)
def test_files_that_are_refused(name: str, content: bytes, message: str, write: Write, bytes_: Tokenizer) -> None:
    assert message in str(refused(write(content, name), bytes_))


def test_only_regular_files_are_opened(write: Write, bytes_: Tokenizer, tmp_path: Path) -> None:
    real = write(ROWS)
    (tmp_path / "link.jsonl").symlink_to(real)
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name, said in {
        "link.jsonl": "symbolic link",
        "pipe.jsonl": "regular file",
        "folder.jsonl": "is a folder",
        "none.jsonl": "no such file",
        "rows.jsonl/x.jsonl": "no such file",
        "loop/x.jsonl": "",
        "nul\0.jsonl": "cannot be read",
    }.items():
        assert said in str(refused(tmp_path / name, bytes_)), name


def test_paths_are_contained(write: Write, bytes_: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    outside, inside = write([{"text": "a"}], "out.jsonl"), write([{"text": "a"}], "jobs/in.jsonl")
    (tmp_path / "jobs" / "way").symlink_to(tmp_path)
    base = tmp_path / "jobs"

    def load(path: str | Path, **settings: Any) -> int:
        config = DataConfig(path=Path(path), **settings)
        return len(load_data(config, bytes_, vocab_size=259, seed=0, base=base, roots=[base]).train)

    assert load("in.jsonl") == load(inside) == load("./x/../in.jsonl") == 1
    for path in ("../out.jsonl", outside, "way/out.jsonl", "..", "/etc/passwd"):
        with pytest.raises(InvalidInputError, match="must be inside"):
            load(path)
    with pytest.raises(InvalidInputError, match="must be inside"):
        load("in.jsonl", eval_path=Path("../out.jsonl"))


def test_problems_are_capped(write: Write, bytes_: Tokenizer) -> None:
    error = refused(write([{"text": "a"}] + [{"text": ""}] * 500), bytes_)
    assert error.total == 500 and len(error.problems) == CAP


def test_reading_stops_at_the_limit(write: Write, bytes_: Tokenizer) -> None:
    assert len(tokens(write([{"text": "a"}, {"text": "b"}, {"text": 3}]), bytes_, limit=2)) == 2
    lines = b'{"text": "a"}\n{"text": "b"}\nno JSON'
    assert len(tokens(write(lines, "lines.json"), bytes_, limit=2)) == 2
    assert len(tokens(write(b"text\na\nb\n'", "rows.csv"), bytes_, limit=2)) == 2


def test_keys_behind_the_rows_of_a_json_file_are_looked_at_with_a_limit(write: Write, bytes_: Tokenizer) -> None:
    document = {"data": [{"text": "a"}, {"text": 3}], "validation": [{"text": "c"}]}
    said = str(refused(write(json.dumps(document).encode(), "rows.json"), bytes_, limit=1))
    assert "column validation: 'a list'; is not read" in said and "column text" not in said


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800")
VALUES = st.recursive(
    SCALARS,
    lambda v: (
        st.lists(v, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "from", "x", "weight", "tool_calls", "type", "text", "name", "function"]
            ),
            v,
        )
    ),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [
        "text",
        "prompt",
        "completion",
        "answer",
        "input",
        "messages",
        "conversations",
        "x",
        "system",
        "history",
        "choices",
        "tools",
        "weight",
        "label",
    ]
)
BAD_ROW = st.dictionaries(FIELDS, VALUES, max_size=4) | VALUES


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file that is broken somewhere: bad rows, or good ones with bytes cut, changed or put in."""
    suffix = draw(st.sampled_from(["jsonl", "json", "csv", "jsonl.gz", "parquet"]))
    rows = draw(st.lists(BAD_ROW, min_size=1, max_size=5))
    if suffix == "csv":
        content = draw(st.just(csv_text()) | st.text(alphabet='text,"\r\n\t a\0é=#').map(str.encode))
    elif suffix == "json":
        content = json.dumps(draw(st.sampled_from([rows, {"data": rows}, rows[0]]))).encode()
    else:
        content = "\n".join(map(json.dumps, rows)).encode()
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        junk = draw(st.sampled_from([b"", b"\0", b"\xff", b"\xef\xbb\xbf", b'"', b"\n", b"{", b"]", b"NaN", b"1e400"]))
        content = content[:at] + junk + content[at + draw(st.integers(0, 5)) :]
    return f"f.{suffix}", gzip.compress(content) if suffix.endswith("gz") and draw(st.booleans()) else content


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=files(), format=st.sampled_from(["auto", "auto", "instruction", "chat", "text"]))
def test_no_file_gives_anything_but_rows_or_a_clear_refusal(
    file: tuple[str, bytes], format: Any, bytes_: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / file[0]
    path.write_bytes(file[1])
    try:
        rows = tokens(path, bytes_, format=format)
    except (InvalidInputError, UsageError) as error:
        assert str(error).isprintable() or "\n" in str(error)
        assert error.exit_code == 2
    else:
        assert rows and all(len(row) > 1 for row in rows)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(good=st.integers(0, 3), data=st.data(), format=st.sampled_from(["instruction", "chat", "text"]))
def test_one_bad_row_among_good_ones_is_always_refused(
    good: int, data: st.DataObject, format: Any, bytes_: Tokenizer, tmp_path: Path
) -> None:
    rows: dict[str, Any] = {
        "instruction": {"prompt": "q", "answer": "a"},
        "chat": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        "text": {"text": "t"},
    }
    lines = [json.dumps(rows[format])] * good
    not_text = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.lists(st.text())
        | st.sampled_from(["", " ", "\ud800"])
    )
    name = {"instruction": data.draw(st.sampled_from(["prompt", "answer"])), "chat": "messages", "text": "text"}[format]
    bad = json.dumps({**rows[format], name: data.draw(not_text)})
    at = data.draw(st.integers(0, good))
    path = tmp_path / "f.jsonl"
    path.write_text("\n".join([*lines[:at], bad, *lines[at:]]), "utf-8")
    error = refused(path, bytes_, format=format)
    assert {problem.line for problem in error.problems} == {at + 1}

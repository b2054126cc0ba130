"""Bad files: each with the file, line, column, value and what is allowed.

Never anything but InvalidInputError.
"""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loramux_traces import InvalidInputError, Problem, read_trace
from loramux_traces.canonical import COLUMNS
from loramux_traces.problems import CAP

Csv = Callable[..., Path]
HEADER = "job_id,submit_s,base_model,method,batch_size,seq_len,duration_s"


def problems_of(path: Path) -> list[Problem]:
    with pytest.raises(InvalidInputError) as caught:
        read_trace(path)
    assert caught.value.exit_code == 2
    assert str(caught.value).isprintable() or "\n" in str(caught.value)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("column", "value", "allowed"),
    [
        ("job_id", "../etc", "1 to 64 of A-Z a-z 0-9 _ . -"),
        ("job_id", "", "is required"),
        ("job_id", "x" * 65, "1 to 64"),
        ("submit_s", "-1", "seconds from the start"),
        ("submit_s", "nan", "seconds from the start"),
        ("submit_s", "soon", "seconds from the start"),
        ("submit_s", "inf", "from 0 to 1e10"),
        ("submit_s", "1000000000", "not from 1970; this is a calendar time: subtract the first submission"),
        ("batch_size", "1_6", "a whole number from 1 to 65536"),
        ("total_steps", "1_0.5", "a finite number"),
        ("submit_s", "2017-10-09 07:01:55", "subtract the first submission"),
        ("submit_s", "1507532515", "subtract the first submission"),
        ("submit_s", "1507532515000", "subtract the first submission"),
        ("base_model", "a b", "such as llama-7b"),
        ("method", "qlora", "one of lora, mixlora, mola, loramoe, dynmole"),
        ("batch_size", "0", "a whole number from 1 to 65536"),
        ("batch_size", "1.5", "a whole number"),
        ("batch_size", "1e400", "a whole number"),
        ("batch_size", "9" * 5000, "a whole number"),
        ("seq_len", "NaN", "a finite number from 1"),
        ("seq_len", "inf", "a finite number from 1"),
        ("duration_s", "1e400", "a finite number"),
        ("duration_s", "0", "a finite number"),
        ("duration_s", "-5", "a finite number"),
        ("rank", "4097", "a whole number from 1 to 4096"),
        ("dropout", "1", "from 0 to below 1"),
        ("priority", "high", "a whole number"),
        ("recompute", "maybe", "true or false"),
        ("dtype", "int4", "one of bf16, fp16, fp32"),
        ("length_dist", "A B", "such as alpaca"),
        ("user", "\x1b[31mred", "printable characters"),
        ("user", "u\u202eresu", "printable characters"),
        ("user", "u" * 257, "at most 256"),
        ("micro_batch_size", "9", "must not exceed batch_size"),
        ("seq_len_p95", "100", "must be at least seq_len"),
        ("total_steps", "5", "exactly one of"),
        ("num_gpus", "0", "a whole number from 1 to 4096"),
        ("seed", "-1", "a whole number from 0 to 9223372036854775807"),
        ("mem_bytes", "1e30", "a whole number"),
    ],
)
def test_each_bad_cell_is_named(csv_file: Csv, column: str, value: str, allowed: str) -> None:
    cells = dict(zip(HEADER.split(","), ["b", "5", "llama-7b", "lora", "8", "512", "100"], strict=True))
    cells[column] = value
    if column == "total_steps":
        cells["duration_s"] = "100"
    quoted = ",".join(f'"{cell}"' for cell in cells.values())
    found = problems_of(csv_file([quoted], ",".join(cells)))
    assert len(found) == 1
    problem = found[0]
    assert (problem.line, problem.column) == (2, column)
    assert allowed in problem.allowed
    if value and column != "total_steps":
        assert problem.value[:3] == value[:3]
    assert "Input should" not in str(problem)


def test_every_bad_row_is_listed(csv_file: Csv) -> None:
    rows = [
        "a,0,llama-7b,lora,8,512,100",
        "a,1,llama-7b,lora,8,512,100",
        "c,2,llama-7b,lora,8",
        "d,3,llama-7b,nope,0,512,100",
        '"e\n",4,llama-7b,lora,8,512,100,extra',
        "f,5,llama-7b,lora,8,512,x",
    ]
    found = problems_of(csv_file(rows))
    assert [(p.line, p.column, p.value) for p in found] == [
        (3, "job_id", "a"),
        (4, "", "5 cells"),
        (5, "method", "nope"),
        (5, "batch_size", "0"),
        (6, "", "8 cells"),
        (8, "duration_s", "x"),
    ]
    assert "line 2 has it too" in found[0].allowed


def test_the_list_is_capped_and_the_rest_counted(csv_file: Csv) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_trace(csv_file(["x,0,llama-7b,lora,0,512,100"] * 200))
    assert (len(caught.value.problems), caught.value.total) == (CAP, 200)
    assert str(caught.value).endswith("... and 150 more")


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        (HEADER.replace("submit_s", "submit"), "did you mean submit_s?"),
        (HEADER.replace("batch_size", "Batch Size"), "did you mean batch_size?"),
        (HEADER + ",duration_s", "is named twice"),
        (HEADER + ",", "every column needs a name"),
        (HEADER.replace(",duration_s", ",user"), "one of total_steps, num_samples with epochs, or duration_s"),
        (HEADER.replace(",seq_len", ""), "is a required column and is missing"),
        ("timestamp,duration,num_gpus,gpu_time,cluster", "trace import --source philly-table"),
    ],
)
def test_bad_headers(csv_file: Csv, header: str, allowed: str) -> None:
    found = problems_of(csv_file(header=header))
    assert all(p.line == 1 for p in found)
    assert any(allowed in p.allowed for p in found)


def test_early_epoch_seconds_of_a_whole_file(csv_file: Csv) -> None:
    found = problems_of(csv_file([f"j{i},{1_507_532_515 + i},llama-7b,lora,8,512,100" for i in range(3)]))
    assert [p.line for p in found] == [2, 3, 4]


@pytest.mark.parametrize("value", ["inf", "1e400", "-inf", "nan", "soon"])
def test_what_is_no_time_at_all_is_no_calendar_time(csv_file: Csv, value: str) -> None:
    assert "calendar" not in problems_of(csv_file([f"a,{value},llama-7b,lora,8,512,100"]))[0].allowed


@pytest.mark.parametrize("text", ['[{{"job_id": "a", "priority": {}}}]', '[{{"job_id": {}}}]'])
@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_python_says_nothing_of_huge_numbers(tmp_path: Path, text: str, suffix: str) -> None:
    path = tmp_path / f"t.{suffix}"
    path.write_text(text.format("9" * 5000))
    said = str([str(p) for p in problems_of(path)])
    assert "digits" not in said or "thousands of digits" in said
    assert "int_max_str_digits" not in said


def test_a_very_long_trace_is_no_calendar(csv_file: Csv) -> None:
    rows = [f"j{i},{i * 1e8},llama-7b,lora,8,512,100" for i in range(20)]
    assert len(read_trace(csv_file(rows))) == 20


@pytest.mark.parametrize(
    ("name", "content", "allowed"),
    [
        ("t.csv", b"", "is empty"),
        ("t.csv", b"# only a comment\n", "is empty"),
        ("t.csv", HEADER.encode(), "has no jobs"),
        ("t.csv", b"\x00\x01\x02", "NUL"),
        ("t.csv", HEADER.encode() + b"\na\x00,0,m,lora,8,512,100\n", "NUL"),
        ("t.csv", HEADER.encode("utf-16"), "UTF-16"),
        ("t.csv", HEADER.encode() + b"\n\xff,0,m,lora,8,512,100\n", "UTF-8"),
        ("t.csv", HEADER.encode() + b'\n"a,0,m,lora,8,512,100\n', "never closed"),
        ("t.csv", HEADER.encode() + b"\n" + b"a" * 200_000 + b",0,m,lora,8,512,100\n", "at most 131072 characters"),
        ("t.csv", HEADER.encode() + b"\n" + b"a" * 2_000_000, "at most 1048576 bytes"),
        ("t.csv", HEADER.encode() + b"\ra,0,m,lora,8,512,100\r", "LF or CRLF"),
        ("t.csv.gz", b"not gzip", "cannot be read"),
        ("t.csv.gz", gzip.compress(HEADER.encode() * 99, mtime=0)[:60], "cannot be read"),
        ("t.json", b"", "not JSON"),
        ("t.json", b"{}", "has no jobs"),
        ("t.json", b"[]", "has no jobs"),
        ("t.json", b"[1]", "must be a mapping"),
        ("t.json", b"[{}", "not JSON"),
        ("t.json", b"[{}] x", "expected the end"),
        ("t.json", b"[" * 100_000, "nested too deeply"),
        ("t.json", b'[{"a": 1, "a": 2}]', "given twice"),
        ("t.json", b'[{"rank": ' + b"9" * 9999 + b"}]", "a whole number from 1 to 4096"),
        ("t.json", b'[{"job_id": true}]', "1 to 64"),
        ("t.json", b'[{"batch_size": true}]', "a whole number"),
        ("t.json", b'[{"submit_s": NaN}]', "seconds from the start"),
        ("t.json", b'[{"nmae": 1}]', "unknown column"),
        ("t.json", b'[{"user": "\\ud800"}]', "printable"),
        ("t.json", b'{"jobs": 3}', "not JSON"),
        ("t.json", b"\xff\xfe", "UTF-8"),
        ("t.json", b"\x00", "NUL"),
        ("t.jsonl", b"{}\n{\n", "not JSON"),
        ("t.jsonl", b"{} {}\n", "one object a line"),
        ("t.jsonl", b"[]\n", "must be a mapping"),
        ("t.yaml", b"", "must be a list of jobs"),
        ("t.yaml", b"a: b", "must be a list of jobs"),
        ("t.yaml", b"- [", "not YAML"),
        ("t.yaml", b"- !!python/object/apply:os.system ['true']", "is not taken"),
        ("t.yaml", b"- submit_s: 2020-13-45", "is required"),
        ("t.yaml", b"- {? {a: b} : c}", "a key must be text"),
        ("t.yaml", b"- &a [*a, *a]", "inside its own anchor"),
        ("t.yaml", b"- job_id: \x07", "control character"),
        ("t.txt", b"", "must end with one of"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, allowed: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert any(allowed in p.allowed for p in problems_of(path)), problems_of(path)


@pytest.mark.parametrize(
    ("name", "content", "line", "column", "allowed"),
    [
        ("t.yaml", b"jobs: []\ndefaults: {gpus: 2}\n", 2, "defaults", "is not known: a trace has jobs and provenance"),
        ("t.json", b'{"jobs": [],\n"defaults": {"gpus": 2}}', 2, "defaults", "write it into every job"),
        ("t.json", b'{"jobs": [], "version": 2, "x_note": 1, "none": null}', 1, "version", "is not known"),
        ("t.yaml", b"provenance: [a]\njobs: []\nx_note: 1\n", 1, "provenance", "must be text"),
    ],
)
def test_keys_beside_the_jobs(tmp_path: Path, name: str, content: bytes, line: int, column: str, allowed: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    (problem,) = problems_of(path)
    assert (problem.line, problem.column) == (line, column) and allowed in problem.allowed


def test_an_alias_bomb_is_refused_where_it_grows(tmp_path: Path) -> None:
    bomb = "- &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
    path = tmp_path / "t.yaml"
    path.write_text(bomb + "- {job_id: *a9}\n")
    found = problems_of(path)
    assert len(found) == 1 and found[0].line == 4
    assert "aliases make this more than 100 times as long" in found[0].allowed


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "no.csv")[0].allowed == "no such file"
    assert "is a folder" in problems_of(tmp_path)[0].allowed
    assert "cannot be read" in problems_of(Path("a\0b.csv"))[0].allowed
    assert "cannot be read" in problems_of(tmp_path / ("x" * 300 + ".csv"))[0].allowed


def test_names_are_escaped_in_messages(tmp_path: Path, csv_file: Csv) -> None:
    path = tmp_path / "\x1b[31m.csv"
    path.write_text("\x1b[0m,b\n1,2\n")
    with pytest.raises(InvalidInputError) as caught:
        read_trace(path)
    assert "\x1b" not in str(caught.value)
    assert "\\x1b" in str(caught.value)


# --- 200 malformed files ---

_GOOD = "# note\n" + HEADER + "\n" + "\n".join(f"j{i},{i},llama-7b,lora,8,512,{100 + i}" for i in range(6)) + "\n"
_JUNK = [bytes([c]) for c in b'\x00\xff",\n\r[]{}'] + [b"1e400", b"nan", b"=1+1", b"\xef\xbb\xbf", b": ", b"- "]
edits = st.lists(
    st.tuples(st.integers(0, len(_GOOD)), st.integers(0, 12), st.one_of(st.sampled_from(_JUNK), st.binary(max_size=8))),
    min_size=1,
    max_size=6,
)
cells = st.one_of(st.text(max_size=8), st.sampled_from(["nan", "-1", "1e999", "lora", "llama-7b", "5", '"', "a\nb"]))
tables = st.tuples(
    st.lists(st.sampled_from([*COLUMNS, "x_a", ""]), max_size=9), st.lists(st.lists(cells, max_size=9), max_size=4)
)
values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*COLUMNS, "jobs", "y"]), inner, max_size=9)
    ),
    max_leaves=12,
)


def _edited(changes: list[tuple[int, int, bytes]]) -> bytes:
    data = _GOOD.encode()
    for at, cut, new in changes:
        data = data[:at] + new + data[at + cut :]
    return data


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode()


def _table(parts: tuple[list[str], list[list[str]]]) -> bytes:
    return "\n".join(",".join(row) for row in [parts[0], *parts[1]]).encode("utf-8", "surrogatepass")


malformed = st.one_of(edits.map(_edited), st.binary(max_size=200), tables.map(_table), values.map(_json))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad")


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(malformed)
def test_malformed_files_raise_nothing_else(folder: Path, content: bytes) -> None:
    for ending in ("csv", "json", "jsonl", "yaml", "csv.gz"):
        path = folder / f"t.{ending}"
        path.write_bytes(content)
        with contextlib.suppress(InvalidInputError):
            read_trace(path)

"""Reading and writing: formats, defaults, order, provenance, round trips."""

from __future__ import annotations

import gzip
import io
import json
import random
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loramux_traces import JobSpec, UsageError, build_trace, generate, read_trace, write_trace
from loramux_traces.allowed import schema_rows
from loramux_traces.canonical import COLUMNS, DEFAULTS, REQUIRED

Csv = Callable[..., Path]


def test_only_the_required_columns_are_needed(csv_file: Csv) -> None:
    trace = read_trace(csv_file())
    job = trace.jobs[0]
    assert (job.job_id, job.submit_s, job.duration_s, job.rank, job.num_gpus, job.dtype) == ("a", 0, 100, 16, 1, "bf16")
    assert trace.name == "jobs"
    assert trace.columns == (*REQUIRED, "duration_s")


@pytest.mark.parametrize("how", ["total_steps", "num_samples,epochs", "duration_s"])
def test_three_ways_to_say_how_long(csv_file: Csv, how: str) -> None:
    header = f"job_id,submit_s,base_model,method,batch_size,seq_len,{how}"
    cells = "10,2" if "," in how else "10"
    job = read_trace(csv_file([f"a,0,llama-7b,lora,8,512,{cells}"], header)).jobs[0]
    assert job.steps == {"total_steps": 10, "num_samples,epochs": 3, "duration_s": None}[how]


def test_order_of_rows_and_columns_changes_nothing(tmp_path: Path) -> None:
    trace = generate("philly-like", jobs=200, seed=1)
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    write_trace(trace, first)
    lines = first.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    rows = [line.split(",") for line in lines[start:]]
    rng = random.Random(0)
    columns = list(range(len(rows[0])))
    rng.shuffle(columns)
    body = rows[1:]
    rng.shuffle(body)
    shuffled = [",".join(row[i] for i in columns) for row in [rows[0], *body]]
    second.write_text("\n".join(lines[:start] + shuffled) + "\n")
    again = read_trace(second)
    assert again.sha256 == trace.sha256
    assert again.jobs == trace.jobs
    assert again.provenance == trace.provenance


def test_a_column_of_defaults_is_no_difference(csv_file: Csv) -> None:
    bare = read_trace(csv_file())
    header = "job_id,submit_s,base_model,method,batch_size,seq_len,duration_s,rank,x_note,user"
    full = read_trace(csv_file(["a,0,llama-7b,lora,8,512,100,16,ignored,"], header))
    assert full.sha256 == bare.sha256


def test_a_changed_value_is_a_difference(csv_file: Csv) -> None:
    assert read_trace(csv_file()).sha256 != read_trace(csv_file(["a,0,llama-7b,lora,8,512,101"])).sha256


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "json", "jsonl", "ndjson", "yaml", "yml"])
def test_every_format_round_trips(tmp_path: Path, ending: str) -> None:
    trace = generate("hparam-search", jobs=40, seed=2, stop_share=0.5, name="t")
    path = tmp_path / f"t.{ending}"
    write_trace(trace, path)
    assert read_trace(path) == trace


def test_json_lines_under_the_name_of_json_and_quotes_after_blanks(tmp_path: Path, csv_file: Csv) -> None:
    trace = generate("philly-like", jobs=5, seed=1)
    write_trace(trace, tmp_path / "a.jsonl")
    (tmp_path / "b.json").write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert read_trace(tmp_path / "b.json").jobs == trace.jobs
    header = "job_id, submit_s, base_model, method, batch_size, seq_len, duration_s, user"
    row = 'a, 0, "llama-7b", "lora", 8, 512, 100, "x, ""y"""'
    job = read_trace(csv_file([row], header)).jobs[0]
    assert (job.base_model, job.user) == ("llama-7b", 'x, "y"')


def test_bom_crlf_blanks_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    text = "# made by\r\n#\r\n# hand\r\njob_id, submit_s, base_model, method, batch_size, seq_len, duration_s\r\n\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + (text + "a, 0, llama-7b, lora, 8, 512, 100\r\n,,,,,,\r\n").encode())
    trace = read_trace(path)
    assert trace.provenance == "made by hand"
    assert len(trace) == 1


def test_provenance_is_escaped_and_kept(tmp_path: Path, csv_file: Csv) -> None:
    path = csv_file(header="# \x1b[31mred\njob_id,submit_s,base_model,method,batch_size,seq_len,duration_s")
    trace = read_trace(path)
    assert trace.provenance == "\\x1b[31mred"
    write_trace(trace, tmp_path / "again.csv")
    assert read_trace(tmp_path / "again.csv").provenance == trace.provenance


def test_spreadsheet_formulas_are_disarmed(tmp_path: Path, csv_file: Csv) -> None:
    header = "job_id,submit_s,base_model,method,batch_size,seq_len,duration_s,user"
    users = ["=1+1", "+a", "-b", "@c", "'=d", "''-e", "'f", "plain"]
    jobs = [
        JobSpec(
            job_id=f"j{i}",
            submit_s=0.0,
            base_model="llama-7b",
            method="lora",
            batch_size=1,
            seq_len=1.0,
            duration_s=1.0,
            user=user,
        )
        for i, user in enumerate(users)
    ]
    path = tmp_path / "t.csv"
    write_trace(build_trace("t", jobs), path)
    cells = [line.split(",")[-1] for line in path.read_text().splitlines()[1:]]
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    assert [job.user for job in read_trace(path)] == users
    # A file of someone else keeps an apostrophe that guards nothing.
    assert read_trace(csv_file(["a,0,llama-7b,lora,8,512,100,'hi'"], header)).jobs[0].user == "'hi'"


def test_json_with_numbers_as_names_and_nulls(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    job = {"job_id": 7, "submit_s": 0, "base_model": "m", "method": "lora", "batch_size": 1, "seq_len": 2}
    path.write_text(json.dumps([{**job, "duration_s": 3, "user": 12, "rank": None, "x_note": [1], "group": ""}]))
    parsed = read_trace(path).jobs[0]
    assert (parsed.job_id, parsed.user, parsed.rank, parsed.group) == ("7", "12", 16, "")


def test_stdin(monkeypatch: pytest.MonkeyPatch, csv_file: Csv) -> None:
    stream = io.TextIOWrapper(io.BytesIO(csv_file().read_bytes()))
    monkeypatch.setattr(sys, "stdin", stream)
    assert read_trace("-").name == "stdin"


def test_packed_file_is_the_same_bytes_twice(tmp_path: Path) -> None:
    trace = generate("gavel", jobs=20)
    for name in ("a.csv.gz", "b.csv.gz"):
        write_trace(trace, tmp_path / name)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes()).startswith(b"# MODELLED")


def test_nothing_is_replaced_or_left_half(tmp_path: Path) -> None:
    trace = generate("gavel", jobs=5)
    path = tmp_path / "t.csv"
    write_trace(trace, path)
    with pytest.raises(UsageError, match="exists already"):
        write_trace(trace, path)
    write_trace(trace, path, force=True)
    with pytest.raises(UsageError, match="must end with"):
        write_trace(trace, tmp_path / "t.txt")
    with pytest.raises(UsageError, match="does not exist"):
        write_trace(trace, tmp_path / "no" / "t.csv")
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        write_trace(trace, tmp_path / "d.csv", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.csv", "t.csv"]


def test_progress_and_format_override(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_trace(generate("poisson", jobs=12_000), path)
    seen: list[int] = []
    other = tmp_path / "t.data"
    other.write_bytes(path.read_bytes())
    assert len(read_trace(other, format="csv", progress=seen.append)) == 12_000
    assert seen == [5000, 10000]
    with pytest.raises(UsageError, match="unknown"):
        read_trace(path, format="xml")


def test_repeated_values_share_one_object(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_trace(generate("philly-like", jobs=50), path)
    jobs = [job for job in read_trace(path) if job.seq_len == 512.0]
    assert len({id(job.seq_len) for job in jobs}) == 1
    assert len({id(job.method) for job in jobs if job.method == "lora"}) == 1


def test_the_schema_table_covers_every_column() -> None:
    rows = schema_rows()
    assert [row[0] for row in rows] == list(COLUMNS) == [f.name for f in fields(JobSpec)]
    assert all(row[2] for row in rows)
    assert [row[0] for row in rows if row[1] == "required"] == list(REQUIRED)


ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)
texts = st.text(max_size=12).filter(
    lambda t: t == t.strip() and not any(c in "\u2028\u2029" or "\u202a" <= c <= "\u202e" for c in t)
    and not any("\u2066" <= c <= "\u2069" for c in t)
    and all(ord(c) >= 32 and not 127 <= ord(c) < 160 and not 0xD800 <= ord(c) < 0xE000 for c in t)
)  # fmt: skip
floats = st.floats(1e-9, 1e9)
lengths = st.one_of(
    st.fixed_dictionaries({"duration_s": floats}),
    st.fixed_dictionaries({"total_steps": floats}),
    st.fixed_dictionaries({"num_samples": st.integers(1, 10**12), "epochs": st.floats(1e-9, 1e6)}),
)
rows = st.builds(
    lambda base, length, extra: {**base, **length, **extra},
    st.fixed_dictionaries(
        {
            "job_id": ids,
            "submit_s": st.floats(0, 1e9, exclude_max=True),
            "base_model": st.sampled_from(["llama-7b", "org/model:v1"]),
            "method": st.sampled_from(["lora", "mixlora", "dynmole"]),
            "batch_size": st.integers(4, 65536),
            "seq_len": st.floats(1, 1e6),
        }
    ),
    lengths,
    st.fixed_dictionaries(
        {},
        optional={
            "user": texts,
            "group": texts,
            "dataset": texts,
            "priority": st.integers(-(10**6), 10**6),
            "alpha": floats,
            "lr": st.floats(1e-12, 1e3),
            "recompute": st.booleans(),
            "mem_bytes": st.integers(1, 2**53),
            "seed": st.integers(0, 2**63 - 1),
            "micro_batch_size": st.integers(1, 4),
            "stop_step": floats,
        },
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("round")


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(rows, min_size=1, max_size=6, unique_by=lambda row: row["job_id"]),
    st.sampled_from(["csv", "json", "jsonl", "yaml"]),
    st.randoms(use_true_random=False),
)
def test_any_trace_round_trips(folder: Path, values: list[dict[str, Any]], ending: str, rng: random.Random) -> None:
    trace = build_trace("t", [JobSpec(**row) for row in values], provenance="by hand")
    rng.shuffle(values)
    assert build_trace("t", [JobSpec(**row) for row in values], provenance="by hand") == trace
    path = folder / f"t.{ending}"
    write_trace(trace, path, force=True)
    again = read_trace(path)
    assert replace(again, name="t") == trace
    assert set(trace.columns) <= set(REQUIRED) | set(DEFAULTS)

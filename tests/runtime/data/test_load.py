"""Settings and splits: what a jobs file may say, and that held-out rows are never trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from loramux_runtime.data import DataConfig, JobData, TokenisedRows, Tokenizer, load_data
from loramux_traces.errors import InvalidInputError

Write = Callable[..., Path]


def load(path: Path, tokenizer: Tokenizer, seed: int = 1, **given: Any) -> JobData:
    return load_data(DataConfig(path=path, **given), tokenizer, vocab_size=tokenizer.vocab_size, seed=seed)


def texts(tokenizer: Tokenizer, rows: TokenisedRows | None) -> list[str]:
    assert rows is not None
    return [tokenizer.decode(tokens[1:-1].tolist()) for tokens, _ in rows]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.sampled_from("abcdef"), min_size=8, max_size=30), seed=st.integers(0, 99), n=st.integers(1, 3))
def test_held_out_rows_are_never_trained_on(
    words: list[str], seed: int, n: int, write: Write, bytes_: Tokenizer
) -> None:
    path = write([{"text": word} for word in [*words, "g", "h", "i", "j"]])
    data = load(path, bytes_, seed, eval_rows=n)
    assert data.eval is not None and len(data.eval) == n
    train, held = texts(bytes_, data.train), texts(bytes_, data.eval)
    assert not set(train) & set(held)
    assert len(train) + len(held) + data.held_out_copies == len(words) + 4
    again = load(path, bytes_, seed, eval_rows=n)
    assert again.train.sha256 == data.train.sha256 and texts(bytes_, again.eval) == held
    assert again.stream.rows(0, 40) == data.stream.rows(0, 40)


def test_fraction_and_file_of_held_out_rows(write: Write, bytes_: Tokenizer) -> None:
    path = write([{"text": f"t{i}"} for i in range(40)])
    assert len(load(path, bytes_, eval_fraction=0.25).eval or ()) == 10
    assert len(load(path, bytes_, eval_fraction=0.001).eval or ()) == 1
    assert texts(bytes_, load(path, bytes_, 1, eval_rows=5).eval) != texts(
        bytes_, load(path, bytes_, 2, eval_rows=5).eval
    )
    data = load(path, bytes_, eval_path=write([{"text": "t3"}, {"text": "new"}], "eval.jsonl"))
    assert texts(bytes_, data.eval) == ["t3", "new"] and len(data.train) == 39 and data.held_out_copies == 1
    assert data.eval_report is not None and data.eval_report.read == 2
    assert load(path, bytes_).eval is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("eval.csv", b"text\nheld\n"),
        ("eval.json", b'[{"text": "held"}]'),
        ("eval.txt", b'{"text": "held"}'),
        ("eval.rows", b'{"text": "held"}'),
    ],
)
def test_a_file_of_held_out_rows_goes_by_its_own_ending(
    name: str, content: bytes, write: Write, bytes_: Tokenizer
) -> None:
    path = write(b'{"text": "a"}\n{"text": "b"}', "train.txt")
    data = load(path, bytes_, file_format="jsonl", eval_path=write(content, name))
    assert texts(bytes_, data.eval) == ["held"]


def test_two_files_of_one_ending_have_the_format_that_is_given(write: Write, bytes_: Tokenizer) -> None:
    train, held_out = write(b"text\na\n", "train.json"), write(b"text\nb\n", "eval.json")
    assert texts(bytes_, load(train, bytes_, file_format="csv", eval_path=held_out).eval) == ["b"]


def test_both_files_must_be_of_one_format(write: Write, bytes_: Tokenizer) -> None:
    path, other = write([{"text": "a"}]), write([{"prompt": "a", "answer": "b"}], "eval.jsonl")
    with pytest.raises(InvalidInputError, match=r"eval\.jsonl:1: column text: is required"):
        load(path, bytes_, eval_path=other)


def test_too_few_rows_to_hold_any_out(write: Write, bytes_: Tokenizer) -> None:
    path = write([{"text": "a"}] * 3)
    with pytest.raises(InvalidInputError, match="3 rows are to be held out, but it has 3"):
        load(path, bytes_, eval_rows=3)
    with pytest.raises(InvalidInputError, match="every row is also a held-out row"):
        load(path, bytes_, eval_rows=1)


def test_own_field_names(write: Write, bytes_: Tokenizer) -> None:
    path = write([{"q": "a", "text": "no", "a": "b"}])
    data = load(path, bytes_, instruction_field="q", output_field="a", template="{instruction}>{output}")
    assert data.report.format == "instruction" and texts(bytes_, data.train) == ["a>b"]


def test_progress_is_told(write: Write, bytes_: Tokenizer) -> None:
    seen: list[int] = []
    config = DataConfig(path=write([{"text": "a"}] * 4500))
    load_data(config, bytes_, vocab_size=259, seed=0, progress=seen.append)
    assert seen == list(range(1, 4501))


@pytest.mark.parametrize(
    "given",
    [
        {"unknown": 1},
        {"max_tokens": 1},
        {"max_tokens": True},
        {"limit": 0},
        {"limit": 2.0},
        {"eval_rows": 1, "eval_fraction": 0.5},
        {"eval_rows": 1, "eval_path": "x"},
        {"eval_fraction": 1.0},
        {"eval_fraction": float("nan")},
        {"shuffle": "yes"},
        {"format": "xml"},
        {"template": "{instruction}"},
        {"template": "{output}{instruction}"},
        {"template": "{instruction}{output}{output}"},
        {"template": "{instruction.__class__}{output}"},
        {"template": "{instruction!r}{output}"},
        {"template": "{instruction:>99999999}{output}"},
        {"template": "{0}{output}"},
        {"template": "x" * 65_536 + "{output}"},
        {"template": "{instruction}{output"},
        {"template": "{instruction}{output}", "use_chat_template": True},
        {"template": "{instruction}{output}", "format": "chat"},
    ],
)
def test_settings_that_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DataConfig(path=Path("x.jsonl"), **given)


def test_a_config_is_part_of_a_larger_one() -> None:
    class Job(BaseModel):
        data: DataConfig

    job = Job.model_validate({"data": {"path": "rows.jsonl", "eval_fraction": 0.1}})
    assert Job.model_validate_json(job.model_dump_json()) == job
    assert hash(job.data) == hash(job.data.model_copy())
    with pytest.raises(ValidationError, match="frozen"):
        job.data.limit = 3  # type: ignore[misc]

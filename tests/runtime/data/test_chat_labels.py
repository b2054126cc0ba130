"""What of a chat is learned: each answer to the end of its turn, whoever speaks first."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from loramux_runtime.data import DataConfig, JobData, Tokenizer, load_data, load_tokenizer
from loramux_runtime.data.chat_writer import ChatWriter
from loramux_runtime.data.parse import RecordReader
from loramux_runtime.data.records import Chat
from loramux_runtime.data.templates import Message
from loramux_runtime.fused.packing import IGNORED
from loramux_runtime.jobs.job_data import data_notes
from loramux_traces.errors import InvalidInputError
from loramux_traces.problems import Problems

Write = Callable[..., Path]
Folder = Callable[..., Path]
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def load(path: Path, tokenizer: Tokenizer, **given: Any) -> JobData:
    config = DataConfig(path=path, shuffle=False, **given)
    return load_data(config, tokenizer, vocab_size=tokenizer.vocab_size, seed=0)


def learned(tokenizer: Tokenizer, data: JobData, row: int = 0) -> str:
    labels = data.train[row][1]
    return tokenizer.decode(labels[labels != IGNORED].tolist())


def text(tokenizer: Tokenizer, data: JobData, row: int = 0) -> str:
    return tokenizer.decode(data.train[row][0].tolist())


@pytest.mark.parametrize(
    "template",
    [
        TURNS + ASK,
        "{% if messages | length == 0 %}{{ raise_exception('empty') }}{% endif %}" + TURNS + ASK,
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are assistant.<|im_end|>\n{% endif %}" + TURNS + ASK,
        TURNS.replace("m.content", "m.content.strip()") + ASK,
        "{% if messages[-1].role == 'system' %}{{ raise_exception('system alone') }}{% endif %}" + TURNS + ASK,
        "<s>" + TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}",
    ],
)  # fmt: skip
def test_an_assistant_may_speak_first(template: str, write: Write, chat_folder: Folder) -> None:
    tokenizer = load_tokenizer(chat_folder(template))
    first = {"role": "assistant", "content": " hello"}
    rows = [[first, USER, ANSWER], [{"role": "system", "content": "S"}, first, USER, ANSWER], [first]]
    data = load(write([{"messages": row} for row in rows]), tokenizer)
    hello = "hello" if "strip" in template else " hello"
    assert learned(tokenizer, data, 0) == f"{hello}<|im_end|>a<|im_end|>"
    assert learned(tokenizer, data, 1) == f"{hello}<|im_end|>a<|im_end|>"
    assert learned(tokenizer, data, 2) == f"{hello}<|im_end|>"


@pytest.mark.parametrize("eos", ["<|im_end|>", "<|eos|>"])
@pytest.mark.parametrize(
    ("closing", "end"),
    [
        ("", "<|im_end|>"),
        # Phi-3 and gpt-oss end a conversation once more than its last turn.
        ("{% if not add_generation_prompt %}{{ eos_token }}{% endif %}", "<|im_end|>"),
        ("{% if not add_generation_prompt %}\n{{ eos_token }}{% endif %}", "<|im_end|>"),
        ("{% if not add_generation_prompt %}{{ eos_token }}\n\n{% endif %}", "<|im_end|>"),
    ],
)
def test_nothing_after_the_end_of_a_turn_is_learned(
    eos: str, closing: str, end: str, write: Write, chat_folder: Folder
) -> None:
    for turns in (TURNS, TURNS.replace("<|im_end|>\n", "<|im_end|>")):
        if eos == "<|im_end|>" and closing and "\n" not in turns.partition("<|im_end|>")[2][:1]:
            continue  # two ends that are the same token side by side are one turn's
        tokenizer = load_tokenizer(chat_folder(turns + ASK + closing, eos=eos))
        data = load(write([{"messages": [USER, ANSWER, USER, {**ANSWER, "content": "b\n"}]}]), tokenizer)
        assert learned(tokenizer, data) == f"a{end}b\n{end}"
        assert text(tokenizer, data).endswith(f"b\n{end}")
        assert data.report.last_turn_only == 0  # type: ignore[union-attr]


def test_an_end_of_sequence_that_belongs_to_a_turn_is_learned(write: Write, chat_folder: Folder) -> None:
    turns = TURNS.replace("<|im_end|>", "<|im_end|>{{ eos_token }}")
    tokenizer = load_tokenizer(chat_folder(turns + ASK, eos="<|eos|>"))
    data = load(write([{"messages": [USER, ANSWER, USER, ANSWER]}]), tokenizer)
    assert learned(tokenizer, data) == "a<|im_end|><|eos|>a<|im_end|><|eos|>"
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = load_tokenizer(chat_folder(plain, eos="<|eos|>"))
    data = load(write([{"messages": [USER, ANSWER]}]), tokenizer)
    assert learned(tokenizer, data) == "a\n<|eos|>"  # no token ends a turn: the tokenizer's is added


def test_a_special_token_that_ends_what_a_turn_says_is_not_the_end_of_the_turn(
    write: Write, chat_folder: Folder
) -> None:
    turns = TURNS.replace("<|im_end|>", "{% if 'call' in m.content %}<s>{% endif %}{{ '\n' }}<|im_end|>")
    tokenizer = load_tokenizer(chat_folder(turns + ASK, eos="<|eos|>"))
    data = load(
        write([{"messages": [USER, {**ANSWER, "content": "call"}, USER, {**ANSWER, "content": "call"}]}]), tokenizer
    )
    assert learned(tokenizer, data) == "call<s>\n<|im_end|>call<s>\n<|im_end|>"


@pytest.mark.parametrize(
    ("front", "back"), [("<s>", ""), ("[gMASK] <sop>", ""), ("<s>", "<|im_end|>"), ("", "<|im_end|>")]
)
def test_what_a_tokenizer_adds_is_there_once(front: str, back: str, write: Write, chat_folder: Folder) -> None:
    tokenizer = load_tokenizer(chat_folder(front=front, back=back))
    before, end = front.replace(" ", ""), "<|im_end|>"
    rows = [{"text": said} for said in ("ab", f"{before}ab", f"ab{end}", f"{before}ab{end}", f"{before}ab{end}\n")]
    data = load(write(rows), tokenizer)
    assert [text(tokenizer, data, row) for row in range(4)] == [f"{before}ab{end}"] * 4
    asked = load(
        write([{"prompt": f"{before}a", "completion": "b"}, {"prompt": "a", "completion": f"b{end}"}]), tokenizer
    )
    assert [text(tokenizer, asked, row) for row in (0, 1)] == [f"{before}ab{end}"] * 2
    assert [learned(tokenizer, asked, row) for row in (0, 1)] == [f"b{end}"] * 2


LONG = [
    {"role": "user", "content": " question 0\n"},
    *(
        turn
        for i in range(12)
        for turn in (
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": f"f{i}", "arguments": {"x": i}}}]},
            {"role": "tool", "content": f"out {i}"},
            {"role": "assistant", "content": f"said {i} ", "weight": i % 3 % 2},
            {"role": "assistant", "content": "assistant"},
            {"role": "user", "content": f"question {i}"},
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("content", ["m.content or ''", "(m.content or '').strip()", "(m.content or '') | upper"])
def test_answers_of_long_chats_are_those_found_one_by_one(
    content: str, chat_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
    turns = TURNS.replace("{{ m.content }}", "{{ " + content + " }}" + calls)
    tokenizer = load_tokenizer(chat_folder(turns + ASK))
    problems = Problems("x")
    record = RecordReader(DataConfig(path=Path("x")), problems).read(1, {"messages": LONG})
    assert isinstance(record, Chat) and not problems.total
    written: list[int] = []
    chat = type(tokenizer).chat
    monkeypatch.setattr(type(tokenizer), "chat", lambda self, m, **k: written.append(len(m)) or chat(self, m, **k))
    writer = ChatWriter(tokenizer, datetime.now(UTC))
    quick = writer.write(record.messages, None)
    cost = sum(written)
    written.clear()
    monkeypatch.setattr("loramux_runtime.data.chat_answers._FEW_TURNS", 10**6)
    assert writer.write(record.messages, None) == quick
    assert [quick.text[a:b] for a, b in quick.spans][-1].lower().startswith("assistant<|im_end|>")
    assert len(quick.spans) == 12 * 2 + 4
    if "upper" not in content:
        assert cost < sum(written) / 2


def test_a_chat_whose_answers_would_take_too_long_to_find_is_learned_by_its_last(
    write: Write, chat_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loramux_runtime.data.chat_answers._MOST_TURNS_WRITTEN", 30)
    monkeypatch.setattr("loramux_runtime.data.chat_answers._FEW_TURNS", 10**6)
    tokenizer = load_tokenizer(chat_folder())
    data = load(write([{"messages": [USER, ANSWER] * 9 + [USER, {**ANSWER, "content": "last"}]}]), tokenizer)
    assert learned(tokenizer, data) == "last<|im_end|>"
    assert data.report.last_turn_only == 1  # type: ignore[union-attr]


def test_templates_that_want_calls_in_another_form(write: Write, chat_folder: Folder) -> None:
    rows = [
        {
            "messages": [
                USER,
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": "é"}}}]},
            ]
        }
    ]
    call = "{% for c in m.tool_calls or [] %}{{ c.function.name + '(' + c.function.arguments + ')' }}{% endfor %}"
    turns = TURNS.replace("{{ m.content }}", "{{ 'say ' + m.content }}" + call)
    tokenizer = load_tokenizer(chat_folder(turns + ASK))
    assert learned(tokenizer, load(write(rows), tokenizer)) == 'say f({"x": ""})<|im_end|>'  # é is no character of it


def test_nulls_in_tools_are_absent_where_the_file_gives_every_key() -> None:
    call = {"function": {"name": "f", "arguments": {"a": 1, "b": None}}, "id": None}
    row = {"messages": [USER, {"role": "assistant", "tool_calls": [call]}], "tools": [{"name": "f", "x": None}]}
    for absent, expected in ((True, {"a": 1}), (False, {"a": 1, "b": None})):
        record = RecordReader(DataConfig(path=Path("x")), Problems("x"), nulls_absent=absent).read(1, row)
        assert isinstance(record, Chat) and record.tools is not None
        assert record.messages[1].extra["tool_calls"][0]["function"]["arguments"] == expected
        assert ("x" in record.tools[0]["function"]) is not absent


def test_a_tokenizer_that_fails_is_named_with_the_row(
    write: Write, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    """A regular expression that gives up ends in a panic, which is no Exception in Python."""
    folder = tmp_path_factory.mktemp("panics")
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate("xya")}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("(x+x+)+y"), "isolated")
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    with pytest.raises(
        InvalidInputError, match=r"its tokenizer fails on row 2 of .*rows\.jsonl: .*retry-limit"
    ) as caught:
        load(write([{"text": "a"}, {"text": "x" * 3000}, {"text": "y"}]), tokenizer)
    assert str(caught.value).startswith(str(folder)) and caught.value.exit_code == 2
    assert len(load(write([{"text": "xxy"}]), tokenizer).train) == 1
    capfd.readouterr()  # what Rust printed of the panic


def test_notes_of_a_jobs_rows(write: Write, bytes_: Tokenizer) -> None:
    path = write([{"text": "a" * n, "n": n} for n in (5, 20, 30, 5)])
    data = load(path, bytes_, eval_path=write([{"text": "aaaaa"}], "eval.jsonl"))
    assert data_notes(data, 22) == (
        "rows.jsonl: 4 text rows, columns not used: n (4)",
        "held out: eval.jsonl: 1 text rows",
        "2 rows are not trained on: a held-out row has the same tokens",
        "1 rows are longer than the 22 tokens that the base model was made for (max_position_embeddings); the longest "
        "has 32. data.max_tokens cuts them",
    )
    assert len(data_notes(data, 32)) == 3
    assert np.all(data.train.lengths <= 32)


CLOSED = "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "most"),
    [
        (TURNS + ASK, 1),
        ("<s>" + TURNS.replace("m.content", "m.content.strip()") + ASK + CLOSED, 1),
        (TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}", 1),
        (TURNS.replace("m.content", "m.content | upper") + ASK, 25),
    ],
)
def test_a_later_chat_is_written_once_and_read_as_if_it_were_the_first(
    template: str, most: int, chat_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(chat_folder(template, eos="<|eos|>"))
    written: list[int] = []
    chat = type(tokenizer).chat
    monkeypatch.setattr(type(tokenizer), "chat", lambda self, m, **k: written.append(len(m)) or chat(self, m, **k))

    def said(salt: str, turns: int) -> list[Message]:
        system = [Message("system", f"S{salt}\n")] if turns % 2 else []
        pairs = ([Message("user", f"q {salt}{i} "), Message("assistant", f"{salt} a{i}")] for i in range(turns))
        return [*system, *(turn for pair in pairs for turn in pair)]

    at = datetime.now(UTC)
    writer = ChatWriter(tokenizer, at)
    for turns in (1, 2, 9, 12):
        writer.write(said("x", turns), None)
        for salt in ("y", "\nfirst", "im_end|>", "assistant"):
            written.clear()
            again = writer.write(said(salt, turns), None)
            assert len(written) <= most
            assert again == ChatWriter(tokenizer, at).write(said(salt, turns), None)

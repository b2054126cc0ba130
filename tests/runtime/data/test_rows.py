"""Tokens and labels: what is learned, where rows end, that ids are those of the whole text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux_runtime.data import DataConfig, JobData, Tokenizer, load_data
from loramux_runtime.data.long_texts import pieces
from loramux_runtime.data.rows import RowBuilder
from loramux_runtime.data.templates import Rendered
from loramux_runtime.data.tokens import Tokens, held_tokens
from loramux_runtime.fused.packing import IGNORED, MicroBatch
from loramux_traces.errors import InvalidInputError, UsageError
from loramux_traces.problems import Problems

Write = Callable[..., Path]


def load(path: Path, tokenizer: Tokenizer, seed: int = 1, **settings: Any) -> JobData:
    return load_data(DataConfig(path=path, **settings), tokenizer, vocab_size=tokenizer.vocab_size, seed=seed)


def learned_text(tokenizer: Tokenizer, data: JobData, row: int = 0) -> str:
    _, labels = data.train[row]
    return tokenizer.decode(labels[labels != IGNORED].tolist())


def text_of(tokenizer: Tokenizer, data: JobData, row: int = 0) -> str:
    return tokenizer.decode(data.train[row][0].tolist())


def test_an_answer_and_its_end_are_learned_and_nothing_else(write: Write, bytes_: Tokenizer) -> None:
    data = load(write([{"question": "Größe?", "answer": "zwölf 🙂"}]), bytes_)
    assert learned_text(bytes_, data) == "zwölf 🙂<|eos|>"
    assert text_of(bytes_, data).startswith("<|bos|>Below is an instruction that describes a task. Write")
    assert text_of(bytes_, data).endswith("### Instruction:\nGröße?\n\n### Response:\nzwölf 🙂<|eos|>")
    tokens, labels = data.train[0]
    assert tokens.dtype == labels.dtype == np.int64
    MicroBatch(tokens=(tokens,), labels=(labels,), samples=(0,))


def test_the_input_changes_the_default_template(write: Write, bytes_: Tokenizer) -> None:
    data = load(write([{"instruction": "a", "input": "b", "output": "c"}]), bytes_)
    assert "### Input:\nb\n\n### Response:\nc" in text_of(bytes_, data)


def test_an_own_template_is_text_and_never_format_code(write: Write, bytes_: Tokenizer) -> None:
    row = {"prompt": "{output} {0.x}", "completion": "yes"}
    data = load(write([row]), bytes_, template="Q: {instruction}{{}} {input}A:{output}.")
    assert text_of(bytes_, data) == "<|bos|>Q: {output} {0.x}{} A:yes.<|eos|>"
    assert learned_text(bytes_, data) == "yes.<|eos|>"


def test_ids_are_those_of_the_whole_text_where_a_merge_crosses_the_boundary(write: Write, merging: Tokenizer) -> None:
    data = load(write([{"prompt": "A", "completion": "banana"}]), merging, template="{instruction}:{output}")
    tokens, labels = data.train[0]
    whole = merging.encode(["A:banana"]).ids.tolist()
    assert tokens.tolist() == [*whole, merging.eos_id]
    apart = [i for text in ("A:", "banana") for i in merging.encode([text]).ids.tolist()]
    assert whole != apart
    assert merging.hf(["A:banana"])["input_ids"][0] == whole
    # The token ":ba" holds the answer's first letters: it is learned.
    assert labels.tolist() == [IGNORED, *whole[1:], merging.eos_id]


def test_text_rows_are_learned_whole(write: Write, bytes_: Tokenizer, merging: Tokenizer) -> None:
    data = load(write([{"text": "ab"}]), bytes_)
    assert data.train[0][1].tolist() == [IGNORED, 97, 98, bytes_.eos_id]
    # Without a bos nothing predicts the first token.
    assert load(write([{"text": "ab"}]), merging).train[0][1].tolist()[0] == IGNORED


def test_all_of_a_row_can_be_learned(write: Write, bytes_: Tokenizer) -> None:
    data = load(write([{"prompt": "a", "completion": "b"}]), bytes_, answers_only=False)
    tokens, labels = data.train[0]
    assert labels[0] == IGNORED and labels[1:].tolist() == tokens[1:].tolist()


CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "assistant"},
    {"role": "assistant", "content": "assistant"},
]


def test_every_assistant_turn_is_learned_in_the_plain_form(write: Write, bytes_: Tokenizer) -> None:
    data = load(write([{"messages": CHAT}]), bytes_)
    assert text_of(bytes_, data) == (
        "<|bos|>### System:\nbe brief\n\n### User:\nhi\n\n### Assistant:\nyes<|eos|>\n\n"
        "### User:\nassistant\n\n### Assistant:\nassistant<|eos|>"
    )
    assert learned_text(bytes_, data) == "yes<|eos|>assistant<|eos|>"


def test_every_assistant_turn_is_learned_in_the_models_template(write: Write, chatml: Tokenizer) -> None:
    turns = [
        {"from": {"user": "human", "assistant": "gpt"}.get(t["role"], "system"), "value": t["content"]} for t in CHAT
    ]
    data = load(write([{"conversations": [*turns, {"from": "human", "value": "unanswered"}]}]), chatml)
    assert text_of(chatml, data) == chatml.hf.apply_chat_template(CHAT, tokenize=False).removesuffix("\n")
    assert learned_text(chatml, data) == "yes<|im_end|>assistant<|im_end|>"
    assert data.report.last_turn_only == 0


def test_instruction_rows_in_the_models_template(write: Write, chatml: Tokenizer) -> None:
    data = load(write([{"prompt": "a", "input": "b", "output": "c"}]), chatml, use_chat_template=True)
    assert text_of(chatml, data) == "<|im_start|>user\na\n\nb<|im_end|>\n<|im_start|>assistant\nc<|im_end|>"
    assert learned_text(chatml, data) == "c<|im_end|>"


def test_a_template_that_rewrites_earlier_turns(write: Write, chat_folder: Callable[[str], Path]) -> None:
    from loramux_runtime.data import load_tokenizer

    rewriting = (
        "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
    )
    tokenizer = load_tokenizer(chat_folder(rewriting))
    data = load(write([{"messages": CHAT}, {"messages": CHAT[1:3]}]), tokenizer)
    assert data.report.last_turn_only == 1
    assert "learned by their last answer only" in str(data.report)
    assert learned_text(tokenizer, data, 0) == "</think>assistant<|im_end|>"
    assert learned_text(tokenizer, data, 1) == "</think>yes<|im_end|>"


def test_a_chat_template_that_refuses_names_the_row(write: Write, chat_folder: Callable[[str], Path]) -> None:
    from loramux_runtime.data import load_tokenizer

    tokenizer = load_tokenizer(chat_folder("{{ raise_exception('no system turns') }}"))
    with pytest.raises(InvalidInputError, match=r"rows\.jsonl:1: the model's chat template refuses .*no system turns"):
        load(write([{"messages": CHAT}]), tokenizer)


def test_settings_that_do_not_go_with_the_rows(write: Write, bytes_: Tokenizer, chatml: Tokenizer) -> None:
    with pytest.raises(UsageError, match="has no chat template"):
        load(write([{"messages": CHAT}]), bytes_, use_chat_template=True)
    with pytest.raises(UsageError, match="text rows"):
        load(write([{"text": "a"}]), chatml, use_chat_template=True)
    with pytest.raises(UsageError, match="chat rows"):
        load(write([{"messages": CHAT}]), bytes_, template="{instruction}{output}")


def test_rows_are_cut_counted_and_left_out_where_nothing_is_left_to_learn(write: Write, bytes_: Tokenizer) -> None:
    rows = [{"prompt": "p" * n, "completion": "yes"} for n in (1, 4, 6, 7, 20)]
    data = load(write(rows), bytes_, template="{instruction}{output}", max_tokens=8)
    # bos + p + yes + eos: 6 tokens of the first; the third keeps one token of its answer, the
    # fourth none.
    assert [len(tokens) for tokens, _ in data.train] == [6, 8, 8]
    assert (data.report.read, data.report.cut, data.report.skipped) == (5, 4, 2)
    assert "4 cut at max_tokens, 2 left out" in str(data.report)
    with pytest.raises(InvalidInputError, match=r"no row has anything to learn within max_tokens \(2\)"):
        load(write(rows[1:]), bytes_, template="{instruction}{output}", max_tokens=2)


def test_a_token_beyond_the_models_vocabulary_is_refused_with_its_line(write: Write, bytes_: Tokenizer) -> None:
    path = write([{"text": "a"}, {"text": "é"}])
    config = DataConfig(path=path)
    assert len(load_data(config, bytes_, vocab_size=258, seed=0).train) == 2
    with pytest.raises(InvalidInputError) as caught:
        load_data(config, bytes_, vocab_size=200, seed=0)
    assert caught.value.total == 2
    said = str(caught.value)
    assert "rows.jsonl:2: 'token id 257'; token ids must be below 200, the base model's vocabulary" in said
    assert "(the tokenizer bytes has 259)" in said


@pytest.mark.parametrize("folder", ["bytes_", "chatml", "merging"])
@settings(max_examples=40, deadline=None)
@given(prompt=st.text(min_size=1), answer=st.text(min_size=1), cut=st.integers(2, 40), data=st.data())
def test_labels_are_tokens_where_learned(
    folder: str, prompt: str, answer: str, cut: int, data: st.DataObject, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(folder)
    prompt, answer = (s.encode("utf-8", "replace").decode() for s in (prompt, answer))
    problems = Problems("x")
    kinds = {"vocab_size": tokenizer.vocab_size, "answers_only": data.draw(st.booleans())}
    span = ((len(prompt), len(prompt) + len(answer)),)
    whole = RowBuilder(tokenizer, problems, max_tokens=10**6, **kinds)
    whole.add(1, Rendered(prompt + answer, span))
    rows = whole.finish()
    assert not problems.total
    short = RowBuilder(tokenizer, problems, max_tokens=cut, **kinds)
    short.add(1, Rendered(prompt + answer, span))
    cut_rows = short.finish()
    assert len(cut_rows) + short.skipped == 1
    ids = tokenizer.encode([prompt + answer]).ids.tolist()
    if not rows:  # characters that the tokenizer does not know leave no token
        assert len(ids) <= 1
        return
    tokens, labels = rows[0]
    assert tokens[: len(ids)].tolist() == ids[: len(tokens)]
    assert tokens[-1] == labels[-1] == tokenizer.eos_id
    assert ((labels == tokens) | (labels == IGNORED)).all()
    for cut_tokens, cut_labels in cut_rows:
        assert cut_tokens.tolist() == tokens[:cut].tolist()
        assert cut_labels.tolist() == labels[:cut].tolist()
        assert np.count_nonzero(cut_labels[1:] != IGNORED) >= 1


@settings(max_examples=60, deadline=None)
@given(prompt=st.text(), answer=st.text(min_size=1))
def test_of_a_byte_row_exactly_the_answers_bytes_are_learned(bytes_: Tokenizer, prompt: str, answer: str) -> None:
    prompt, answer = (s.encode("utf-8", "replace").decode() for s in (prompt, answer))
    builder = RowBuilder(bytes_, Problems("x"), vocab_size=259, max_tokens=10**6)
    builder.add(1, Rendered(prompt + answer, ((len(prompt), len(prompt + answer)),)))
    tokens, labels = builder.finish()[0]
    assert tokens.tolist() == [256, *(prompt + answer).encode(), 257]
    assert labels[labels != IGNORED].tolist() == [*answer.encode(), 257]


PIECE = st.text(alphabet="ab \n\té🙂x.", max_size=12)


@settings(max_examples=150, deadline=None)
@given(prompt=PIECE, answer=PIECE.filter(bool), trimmed=st.booleans())
def test_of_a_byte_level_bpe_every_token_with_a_byte_of_the_answer_is_learned(
    byte_bpe: Callable[[bool], Tokenizer], prompt: str, answer: str, trimmed: bool
) -> None:
    """The oracle counts bytes.

    A byte-level token has a character for each, whatever its offsets say (GPT-2's leave out
    blanks).
    """
    tokenizer = byte_bpe(trimmed)
    builder = RowBuilder(tokenizer, Problems("x"), vocab_size=tokenizer.vocab_size, max_tokens=10**6)
    builder.add(1, Rendered(prompt + answer, ((len(prompt), len(prompt + answer)),)))
    tokens, labels = builder.finish()[0]
    sizes = [len(tokenizer.hf.convert_ids_to_tokens(int(token))) for token in tokens[:-1]]
    assert sum(sizes) == len((prompt + answer).encode())
    expected = np.append(np.cumsum(sizes) > len(prompt.encode()), True)
    expected[0] = False
    assert (labels != IGNORED).tolist() == expected.tolist()


def test_rows_are_immutable_and_can_be_selected(write: Write, bytes_: Tokenizer) -> None:
    rows = load(write([{"text": t} for t in ("a", "bb", "ccc")]), bytes_).train
    picked = rows.select([2, 0])
    assert [bytes(t[1:-1].astype(np.uint8)) for t, _ in picked] == [b"ccc", b"a"]
    assert picked.keys() == [rows.keys()[2], rows.keys()[0]]
    assert rows.sha256 != picked.sha256 and rows.n_labels == 9 and rows.lengths.tolist() == [3, 4, 5]
    with pytest.raises(ValueError, match="read-only"):
        rows.ids[0] = 1
    with pytest.raises(IndexError):
        rows[3]


def test_a_batch_of_the_tokenizer_is_bounded_before_a_row_is_added(
    write: Write, bytes_: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[int]] = []
    encode = type(bytes_).encode

    def spy(self: Tokenizer, texts: Any, **given: Any) -> Any:
        batches.append([len(text.encode()) for text in texts])
        return encode(self, texts, **given)

    monkeypatch.setattr(type(bytes_), "encode", spy)
    monkeypatch.setattr("loramux_runtime.data.rows._BATCH_BYTES", 100)
    path = write([{"text": text} for text in ("a" * 60, "\U0001f600" * 15, "b" * 40, "c" * 500, "d")])
    config = DataConfig(path=path, shuffle=False)
    data = load_data(config, bytes_, vocab_size=bytes_.vocab_size, seed=0)
    assert batches == [[60], [60, 40], [500], [1]]
    assert data.train.lengths.tolist() == [62, 62, 42, 502, 3]


def test_offsets_of_long_texts_are_those_of_short_ones(bytes_: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a \U0001f600<|eos|> b", "c"]
    expected = bytes_.encode(texts)
    assert expected.begins[:3].tolist() == [0, 0, 1] and expected.ends[:3].tolist() == [0, 1, 2]
    monkeypatch.setattr("loramux_runtime.data.tokens._MANY_TOKENS", 0)
    found = bytes_.encode(texts)
    assert found.begins.tolist() == expected.begins.tolist() and found.ends.tolist() == expected.ends.tolist()
    assert sum(found.counts) == len(found) and found.counts[1] == 2


LONG_TEXT = st.lists(
    st.tuples(
        st.sampled_from(["a", " ", "ab", " b.", "\n", "🙂", "é", "</s>", "<|eos|>", ":ba x"]), st.integers(1, 60)
    ),
    min_size=15,
    max_size=30,
).map(lambda runs: "".join(piece * times for piece, times in runs))


@pytest.mark.parametrize("folder", ["bytes_", "merging", "trimmed", "whole"])
@settings(max_examples=25, deadline=None)
@given(text=LONG_TEXT)
def test_the_pieces_of_a_long_text_are_its_tokens(
    folder: str, text: str, byte_bpe: Callable[[bool], Tokenizer], request: pytest.FixtureRequest
) -> None:
    bpe = folder in ("trimmed", "whole")
    tokenizer: Tokenizer = byte_bpe(folder == "trimmed") if bpe else request.getfixturevalue(folder)
    if folder == "merging":  # it drops what it does not know, without a trace in its offsets
        text = text.encode("ascii", "ignore").decode()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LONG", 151), ("_SHARED", 60), ("_AGREE", 6)):
            patch.setattr(f"loramux_runtime.data.long_texts.{name}", value)
        joined = Tokens.joined(list(pieces(tokenizer, text)))
    whole = tokenizer.encode([text], add_special=False)
    for name in ("ids", "begins", "ends"):
        assert getattr(joined, name).tolist() == getattr(whole, name).tolist()


@pytest.mark.parametrize("answer", ["é🙂 b" * 60, "b" * 200 + "<|eos|>", "<|eos|>" + " " * 250])
def test_a_long_row_is_tokenised_up_to_what_is_trained(
    answer: str, write: Write, bytes_: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write([{"prompt": "a", "completion": "b"}, {"prompt": "é" * 30, "completion": answer}, {"text": "x"}][:2])
    expected = [load(path, bytes_, max_tokens=cut, shuffle=False) for cut in (65, 120, 1000)]
    sizes: list[int] = []
    encode = type(bytes_).encode

    def spy(self: Tokenizer, texts: Any, **given: Any) -> Any:
        sizes.extend(map(len, texts))
        return encode(self, texts, **given)

    monkeypatch.setattr(type(bytes_), "encode", spy)
    for module, name, value in (("rows", "LONG", 50), ("long_texts", "LONG", 50), ("long_texts", "_SHARED", 20)):
        monkeypatch.setattr(f"loramux_runtime.data.{module}.{name}", value)
    monkeypatch.setattr("loramux_runtime.data.long_texts._AGREE", 4)
    for cut, before in zip((65, 120, 1000), expected, strict=True):
        sizes.clear()
        data = load(path, bytes_, max_tokens=cut, shuffle=False)
        assert data.train.sha256 == before.train.sha256 and str(data.report) == str(before.report)
        assert max(sizes) == 50
        if cut == 65:
            # Of an answer that may be an end of turn and blanks alone, all is looked at.
            assert (sum(sizes) < 200) == (answer[0] != "<")


def test_tokens_of_answers_are_found_wherever_they_stand(bytes_: Tokenizer) -> None:
    rows = [Rendered("ab cd ef", ((3, 5), (6, 8))), Rendered("é🙂", ((1, 2),)), Rendered("", ((0, 0),))]
    tokens = bytes_.encode([row.text for row in rows])
    expected = [[4, 5], [7, 8], [12, 13, 14, 15], []]
    held = list(held_tokens(rows, tokens))
    assert [list(found) for found in held] == expected and all(isinstance(found, range) for found in held)
    # Tokens that the tokenizer adds at the end are nowhere, and some tokens go back.
    back = Tokens.joined([tokens[1:9]], (256,), (257,))
    assert [list(found) for found in held_tokens(rows[:1], back)] == expected[:2]
    turned = Tokens(back.ids[::-1], back.begins[::-1], back.ends[::-1], back.counts)
    assert [list(found) for found in held_tokens(rows[:1], turned)] == [[4, 5], [1, 2]]

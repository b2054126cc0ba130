"""Templates that open, take out or rewrite reasoning, and that end the last turn otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from loramux_runtime.data import DataConfig, JobData, Tokenizer, load_data, load_tokenizer
from loramux_runtime.data.long_texts import pieces
from loramux_runtime.fused.packing import IGNORED
from loramux_traces.errors import InvalidInputError

Write = Callable[..., Path]
Folder = Callable[..., Path]
USER = {"role": "user", "content": "q"}
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
TURN = "<|im_start|>{{ m.role }}\n{{ content }}<|im_end|>\n"
#: As DeepSeek-R1's distilled models have it: no turn keeps its reasoning.
NO_TURN = (
    "{% for m in messages %}{% set content = m.content.split('</think>')[-1].lstrip() %}" + TURN + "{% endfor %}" + ASK
)
#: As Qwen3 has it, in short: the last turn keeps its reasoning, on lines of its own.
LAST_TURN = (
    "{% for m in messages %}{% set content = m.content %}{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set content = content.split('</think>')[-1].lstrip() %}"
    "{% if loop.last %}{% set content = '<think>\n' + thought + '\n</think>\n\n' + content %}{% endif %}{% endif %}"
    + TURN
    + "{% endfor %}"
    + ASK.replace("<think>\n", "")
)


def load(path: Path, tokenizer: Tokenizer) -> JobData:
    return load_data(DataConfig(path=path, shuffle=False), tokenizer, vocab_size=tokenizer.vocab_size, seed=0)


def answers(*contents: str) -> dict[str, Any]:
    return {"messages": [turn for said in contents for turn in (USER, {"role": "assistant", "content": said})]}


def learned(tokenizer: Tokenizer, data: JobData, row: int = 0) -> str:
    labels: np.ndarray[Any, Any] = data.train[row][1]
    return tokenizer.decode(labels[labels != IGNORED].tolist())


@pytest.mark.parametrize("before", [[], ["a"], ["<p>"], ["a"] * 9])
def test_an_answer_may_begin_like_what_a_request_opens(before: list[str], write: Write, chat_folder: Folder) -> None:
    tokenizer = load_tokenizer(chat_folder(NO_TURN))
    rows = [answers(*before, said) for said in ("hi", "<table>x", "<b>y", "<think", "hi", "<")]
    data = load(write(rows), tokenizer)
    first = "".join(f"{said}<|im_end|>" for said in before)
    said = [learned(tokenizer, data, row) for row in range(len(rows))]
    assert said == [f"{first}{row['messages'][-1]['content']}<|im_end|>" for row in rows]


def test_an_answer_that_has_what_a_request_opens_goes_on_from_there(write: Write, chat_folder: Folder) -> None:
    whole = NO_TURN.replace(".split('</think>')[-1].lstrip()", "")
    tokenizer = load_tokenizer(chat_folder(whole))
    rows = [answers("hi"), answers("<think>\nx\n</think>\n\n42"), answers("<b>"), answers("<think>\ny\n</think>\n\n43")]
    data = load(write(rows), tokenizer)
    assert [learned(tokenizer, data, row) for row in range(4)] == [
        "hi<|im_end|>",
        "x\n</think>\n\n42<|im_end|>",
        "<b><|im_end|>",
        "y\n</think>\n\n43<|im_end|>",
    ]


@pytest.mark.parametrize(
    ("template", "row", "turn"),
    [
        (NO_TURN, answers("<think>\nx\n</think>\n\n42"), 1),
        (NO_TURN, answers("<think>\nx\n</think>\n\n42", "b"), 1),
        (NO_TURN, answers("a", "<think>x</think>42"), 3),
        (NO_TURN.replace(".split('</think>')[-1].lstrip()", "[:6]"), answers("a", "a long answer"), 3),
        (NO_TURN.replace(".split('</think>')[-1].lstrip()", "[:6]"), {"messages": [{**USER, "content": "a long question"}, {"role": "assistant", "content": "b"}]}, 0),
    ],
)  # fmt: skip
def test_a_template_that_writes_a_part_of_a_turn_is_refused(
    template: str, row: dict[str, Any], turn: int, write: Write, chat_folder: Folder
) -> None:
    tokenizer = load_tokenizer(chat_folder(template))
    with pytest.raises(InvalidInputError, match=f":2: .*leaves out a part of what turn {turn} .*prompt and completion"):
        load(write([answers("fine"), row]), tokenizer)


def test_reasoning_that_is_written_on_other_lines_is_not_left_out(write: Write, chat_folder: Folder) -> None:
    tokenizer = load_tokenizer(chat_folder(LAST_TURN))
    data = load(
        write([answers("<think>x y</think>42"), answers("<think>x</think>41", "<think>y</think>42")]), tokenizer
    )
    assert learned(tokenizer, data, 0) == "<think>\nx y\n</think>\n\n42<|im_end|>"
    # the first answer has lost its reasoning by then: it is not what was asked for
    assert learned(tokenizer, data, 1) == "<think>\ny\n</think>\n\n42<|im_end|>"
    assert data.report is not None and data.report.last_turn_only == 1


def test_an_answer_is_read_as_in_a_chat_by_itself(write: Write, chat_folder: Folder) -> None:
    """The template takes reasoning out of answers that any user turn follows, even far behind."""
    template = LAST_TURN.replace("loop.last", "loop.index0 > ns.user").replace(
        "{% for m in messages %}",
        "{% set ns = namespace(user=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.user = loop.index0 %}"
        "{% endif %}{% endfor %}{% for m in messages %}",
        1,
    )
    tokenizer = load_tokenizer(chat_folder(template))
    tool = {"role": "tool", "content": "t", "tool_call_id": "1"}
    call = {"role": "assistant", "content": "<think>x</think>look"}
    current = {"messages": [USER, call, tool, {"role": "assistant", "content": "done"}]}
    followed = {"messages": [USER, call, tool, USER, {"role": "assistant", "content": "bye"}]}
    alone = load(write([followed]), tokenizer)
    after = load(write([current, followed]), tokenizer)
    assert learned(tokenizer, after, 0) == "<think>\nx\n</think>\n\nlook<|im_end|>done<|im_end|>"
    assert learned(tokenizer, after, 1) == learned(tokenizer, alone, 0) == "bye<|im_end|>"


def test_a_last_turn_that_ends_otherwise_leaves_the_others_their_own_end(write: Write, chat_folder: Folder) -> None:
    """As gpt-oss has it: <|return|> ends the last turn, <|end|> the others."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if loop.last and m.role == 'assistant' %}<|eos|>{% else %}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = load_tokenizer(chat_folder(template, eos="<|eos|>"))
    data = load(write([answers("a", "b", "c")]), tokenizer)
    assert learned(tokenizer, data) == "a<|im_end|>b<|im_end|>c<|eos|>"
    # GLM-4 has no end of turn: what follows is the next heading
    plain = template.replace("<|im_end|>", "").replace(
        "<|im_start|>{{ m.role }}", "{{ '<s>' if m.role == 'user' else '<|im_start|>assistant' }}"
    )
    tokenizer = load_tokenizer(chat_folder(plain, eos="<|eos|>"))
    data = load(write([answers("a", "b", "c")]), tokenizer)
    assert learned(tokenizer, data) == "abc<|eos|>"


def test_pieces_are_not_joined_within_a_number(tmp_path: Path) -> None:
    """Threes of digits from the beginning of a number on: another beginning is another division."""
    vocab = {c: i for i, c in enumerate("0123456789 wx")} | {"12": 13, "123": 14}
    backend = Backend(models.BPE(vocab=vocab, merges=[("1", "2"), ("12", "3")]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d{1,3}|\D+"), "isolated")
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    rng = np.random.default_rng(0)
    for front in range(6):
        digits = "".join(map(str, rng.integers(0, 10, 40_000)))
        text = "w" * front + digits + " x" * 9_000 + digits[:20_000]
        found = [int(token) for piece in pieces(tokenizer, text) for token in piece.ids]
        assert found == backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("number", ["1e400", "-1e999", "9" * 5000])
def test_arguments_of_a_call_are_finite(number: str, write: Write, chat_folder: Folder) -> None:
    tokenizer = load_tokenizer(chat_folder("{% for m in messages %}{{ m }}{% endfor %}"))
    call = {"function": {"name": "f", "arguments": '{"x": ' + number + "}"}}
    row = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    with pytest.raises(InvalidInputError, match="arguments"):
        load(write([row]), tokenizer)


@pytest.mark.parametrize(("role", "said"), [("user", "what the turn says"), ("assistant", "an answer")])
def test_a_turn_of_null(role: str, said: str, write: Write, chat_folder: Folder) -> None:
    row = {"messages": [USER, {"role": "assistant", "content": "a"}, {"role": role, "content": None}]}
    with pytest.raises(InvalidInputError, match=f"{said}; null or nothing stands only beside tool_calls"):
        load(write([row]), load_tokenizer(chat_folder()))

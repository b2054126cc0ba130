"""Rows as the ecosystem writes them: read as they are meant, refused, or named as not used."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loramux_runtime.data import DataConfig, JobData, Tokenizer, load_data, load_tokenizer
from loramux_runtime.fused.packing import IGNORED
from loramux_traces.errors import InvalidInputError

Write = Callable[..., Path]
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
#: Writes tools, calls and reasoning, as Qwen's and Hermes' templates do.
TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tooled(chat_folder: Callable[[str], Path]) -> Tokenizer:
    return load_tokenizer(chat_folder(TOOLS))


class Loader:
    def __init__(self, write: Write) -> None:
        self.write = write

    def data(self, rows: list[Any], tokenizer: Tokenizer, **given: Any) -> JobData:
        config = DataConfig(path=self.write(rows), shuffle=False, **{"max_tokens": 4000, **given})
        return load_data(config, tokenizer, vocab_size=tokenizer.vocab_size, seed=0)

    def __call__(self, row: Any, tokenizer: Tokenizer, **given: Any) -> tuple[str, str, str]:
        """The text of a row, what of it is learned (| between the parts), and the report."""
        data = self.data([row], tokenizer, **given)
        tokens, labels = data.train[0]
        parts: list[list[int]] = [[]]
        for token, label in zip(tokens.tolist(), labels.tolist(), strict=True):
            if label == IGNORED:
                parts += [[]] if parts[-1] else []
            else:
                parts[-1].append(token)
        learned = "|".join(tokenizer.decode(part) for part in parts if part)
        return tokenizer.decode(tokens.tolist()), learned, str(data.report).partition("rows, ")[2]

    def refusal(self, row: Any, tokenizer: Tokenizer, **given: Any) -> str:
        with pytest.raises(InvalidInputError) as caught:
            self.data([row], tokenizer, **given)
        assert ".jsonl:1:" in str(caught.value)
        return str(caught.value).partition(".jsonl:1: ")[2]


@pytest.fixture
def load(write: Write) -> Loader:
    return Loader(write)


# -- instructions


def test_alpacas_system_and_history_come_first_and_earlier_answers_are_learned(
    load: Loader, bytes_: Tokenizer, chatml: Tokenizer
) -> None:
    row = {
        "instruction": "In Lima?",
        "input": "Now",
        "output": "Nine.",
        "system": "Be brief.",
        "history": [["In Oslo?", "Three."]],
    }
    text, learned, said = load(row, bytes_)
    assert text == (
        "<|bos|>Be brief.\n\n### Instruction:\nIn Oslo?\n\n### Response:\nThree.<|eos|>\n\n"
        "### Instruction:\nIn Lima?\n\n### Input:\nNow\n\n### Response:\nNine.<|eos|>"
    )
    assert (learned, said) == ("Three.<|eos|>|Nine.<|eos|>", "")
    text, learned, _ = load(row, bytes_, template="Q {instruction} {input} A {output}!")
    assert text == "<|bos|>Be brief.\n\nQ In Oslo?  A Three.!<|eos|>\n\nQ In Lima? Now A Nine.!<|eos|>"
    assert learned == "Three.!<|eos|>|Nine.!<|eos|>"
    text, learned, _ = load(row, chatml, use_chat_template=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nIn Oslo?<|im_end|>\n<|im_start|>assistant\nThree.<|im_end|>\n"
        "<|im_start|>user\nIn Lima?\n\nNow<|im_end|>\n<|im_start|>assistant\nNine.<|im_end|>"
    )
    assert learned == "Three.<|im_end|>|Nine.<|im_end|>"
    text, _, _ = load({**row, "history": json.dumps(row["history"]), "system": ""}, bytes_)
    assert text.startswith("<|bos|>Below is an instruction that describes a task. Write") and "Oslo" in text


@pytest.mark.parametrize("none", [None, "", []])
def test_no_system_and_no_history_change_nothing(none: Any, load: Loader, bytes_: Tokenizer) -> None:
    plain = {"instruction": "a", "output": "b"}
    assert load({**plain, "system": none, "history": none, "choices": none}, bytes_) == load(plain, bytes_)


def test_openorcas_system_prompt(load: Loader, bytes_: Tokenizer) -> None:
    text, _, said = load(
        {"id": "x", "system_prompt": "LIKE FIVE", "question": "Why rain?", "response": "Clouds."}, bytes_
    )
    assert text == "<|bos|>LIKE FIVE\n\n### Instruction:\nWhy rain?\n\n### Response:\nClouds.<|eos|>"
    assert said == "columns not used: id (1)"


@pytest.mark.parametrize(
    "choices",
    [
        ["sky", "blood", 3],
        {"text": ["sky", "blood", "3"], "label": ["A", "B", "C"]},
        {"A": "sky", "B": "blood", "C": "3"},
        {"A": "sky", "B": "blood", "C": "3", "D": None},
        ["sky", "blood", "3", None, None],
        {"text": ["sky", "blood", "3", None], "label": ["A", "B", "C", None]},
        "A. sky\nB. blood\nC. 3",
        '["sky", "blood", 3]',
    ],
)
@pytest.mark.parametrize("name", ["choices", "options"])
def test_choices_stand_in_the_prompt(name: str, choices: Any, load: Loader, bytes_: Tokenizer) -> None:
    text, learned, said = load({"question": "Which is red?", name: choices, "answer": "B"}, bytes_)
    assert "### Instruction:\nWhich is red?\n\nA. sky\nB. blood\nC. 3\n\n### Response:\nB<|eos|>" in text
    assert (learned, said) == ("B<|eos|>", "")


# -- prompt and completion


def test_trls_prompt_and_completion_are_learned_as_they_stand(load: Loader, bytes_: Tokenizer) -> None:
    row = {"prompt": "The sky is", "completion": " blue."}
    assert load(row, bytes_) == ("<|bos|>The sky is blue.<|eos|>", " blue.<|eos|>", "")
    assert load({**row, "prompt": ""}, bytes_)[:2] == ("<|bos|> blue.<|eos|>", " blue.<|eos|>")
    assert load({**row, "prompt": "<|bos|>x", "completion": "y<|eos|>"}, bytes_)[:2] == ("<|bos|>xy<|eos|>", "y<|eos|>")
    assert load.data([row], bytes_).report.format == "completion"  # type: ignore[union-attr]
    for wanted in ({"format": "instruction"}, {"instruction_field": "prompt"}):
        assert "### Instruction:\nThe sky is\n\n### Response:\n blue.<|eos|>" in load(row, bytes_, **wanted)[0]
    assert "### Instruction:" in load({"prompt": "a", "response": "b"}, bytes_)[0]
    assert load({**row, "system": "S"}, bytes_)[0].startswith("<|bos|>S\n\n### Instruction:\nThe sky is")
    said = load.refusal({**row, "history": [["a", "b"]]}, bytes_, format="completion")
    assert said.startswith("column history: 'a list'; prompt and completion are learned as they stand")


def test_trls_lists_of_messages_are_a_chat_of_which_the_completion_is_learned(
    load: Loader, bytes_: Tokenizer, chatml: Tokenizer
) -> None:
    row = {"prompt": [USER, {"role": "assistant", "content": "OLD"}, USER], "completion": [ANSWER]}
    assert load(row, chatml)[1:] == ("a<|im_end|>", "")
    assert load(row, chatml)[0].count("OLD") == 1
    assert load(row, bytes_)[1:] == ("a<|eos|>", "")
    assert "completion[0].role: 'narrator'" in load.refusal(
        {**row, "completion": [{"role": "narrator", "content": "x"}]}, bytes_
    )


# -- chats


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "system", "content": "S"}, USER, ANSWER]},
        {"messages": [{"role": "developer", "content": "S"}, USER, ANSWER]},
        {"messages": [USER, ANSWER], "system": "S"},
        {"messages": json.dumps([USER, ANSWER]), "system_prompt": "S"},
        {"conversations": [{"from": "Human", "value": "q"}, {"from": "GPT", "value": "a"}], "system": "S"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "bot", "value": "a"}, {"from": "human", "value": "z"}], "system": "S"},
        {"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}], "systemInstruction": {"parts": [{"text": "S"}]}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": [{"type": "text", "text": "a", "image_url": None}, ""]}], "system": "S"},
        {"prompt": [{"role": "system", "content": "S"}, USER], "completion": [ANSWER]},
        {"messages": [{**USER, "tool_calls": None, "weight": None, "value": None}, {**ANSWER, "tool_calls": [], "name": None}], "tools": None, "system": "S"},
    ],
)  # fmt: skip
def test_one_chat_in_many_forms(row: dict[str, Any], load: Loader, chatml: Tokenizer, bytes_: Tokenizer) -> None:
    expected = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>"
    assert load(row, chatml) == (expected, "a<|im_end|>", "")
    plain = "<|bos|>### System:\nS\n\n### User:\nq\n\n### Assistant:\na<|eos|>"
    assert load(row, bytes_) == (plain, "a<|eos|>", "")


@pytest.mark.parametrize(
    ("key", "off", "on"), [("weight", 0, 1), ("train", False, True), ("training", False, True), ("loss", 0.0, 1.0)]
)
def test_a_turn_may_be_read_and_not_learned(
    key: str, off: Any, on: Any, load: Loader, chatml: Tokenizer, bytes_: Tokenizer
) -> None:
    turns = [USER, {**ANSWER, "content": "WRONG", key: off}, USER, {**ANSWER, key: on}]
    for tokenizer, end in ((chatml, "<|im_end|>"), (bytes_, "<|eos|>")):
        text, learned, said = load({"messages": turns}, tokenizer)
        assert "WRONG" in text and (learned, said) == (f"a{end}", "")
        # What comes after the last learned answer cannot be learned from.
        text, learned, said = load(
            {"messages": [USER, {**ANSWER, key: on}, USER, {**ANSWER, "content": "WRONG", key: off}]}, tokenizer
        )
        assert "WRONG" not in text and (learned, said) == (f"a{end}", "")
    data = load.data([{"messages": turns}, {"messages": turns[:2]}], chatml)
    assert str(data.report).endswith("2 chat rows, 1 left out (no answer of theirs is to be learned)")
    for bad in (0.5, 2, -1, "0", [0]):
        said = load.refusal({"messages": [USER, {**ANSWER, key: bad}]}, chatml)
        assert said.startswith(f"column messages[1].{key}: ") and (
            "must be 0 or 1" in said or "must be true or false" in said
        )
    said = load.refusal({"messages": turns}, chatml, answers_only=False)
    assert said.startswith(f"column messages[1].{key}: ") and "needs answers_only: true" in said
    assert "contradicts" in load.refusal({"messages": [USER, {**ANSWER, "weight": 1, "train": False}]}, chatml)
    # What only looks like such a mark is left unread, and named.
    said = load({"messages": [{**USER, "trainable": False}, {**ANSWER, "loss_of": "text"}]}, chatml)[2]
    assert said == "columns not used: turn.loss_of (1), turn.trainable (1)"
    assert (
        load({"messages": [{**USER, key: on}, ANSWER]}, chatml)[2]
        == f"columns not used: turn.{key} of a user turn (only answers are learned) (1)"
    )


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"city": "Oslo", "at": null}'}}
CALLED = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "name": "look", "content": "12 C"},
    ANSWER,
]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CALLED, "tools": [TOOL]},
        {"messages": CALLED, "tools": json.dumps([TOOL])},
        {"messages": CALLED, "tools": [TOOL["function"]]},
        {"messages": [USER, {"role": "assistant", "content": None, "function_call": CALL["function"]}, {"role": "function", "name": "look", "content": "12 C"}, ANSWER], "functions": [TOOL["function"]]},
        {"messages": [USER, {"role": "assistant", "tool_calls": [CALL["function"]]}, *CALLED[2:]], "tools": [json.dumps(TOOL)]},
    ],
)  # fmt: skip
def test_tools_and_calls_go_through_the_models_template(row: dict[str, Any], load: Loader, tooled: Tokenizer) -> None:
    text, learned, said = load(row, tooled)
    assert text.startswith(f"<|im_start|>system\n{json.dumps(TOOL)}<|im_end|>\n<|im_start|>user\nq<|im_end|>\n")
    assert "<|im_start|>tool\n12 C<|im_end|>" in text
    assert learned == '<call>{"name": "look", "arguments": {"city": "Oslo", "at": null}}</call><|im_end|>|a<|im_end|>'
    assert said == ""


@pytest.mark.parametrize(
    "call",
    [
        {"function": {"name": "look", "parameters": {"city": "Oslo"}}},
        {"function": {"name": "look", "args": {"city": "Oslo"}}},
        {"function": {"name": "look", "input": '{"city": "Oslo"}'}},
        {"function": {"name": "look"}, "arguments": {"city": "Oslo"}},
        {"function": {"name": "look", "arguments": ""}, "input": {"city": "Oslo"}},
        {"name": "look", "function": {"name": "look", "arguments": {"city": "Oslo"}}, "args": '{"city":"Oslo"}'},
        {"name": "look", "function": {"arguments": {"city": "Oslo"}}},
        {"name": "look", "parameters": {"city": "Oslo"}},
    ],
)
def test_arguments_of_calls_are_read_under_every_name(call: Any, load: Loader, tooled: Tokenizer) -> None:
    learned = '<call>{"name": "look", "arguments": {"city": "Oslo"}}</call><|im_end|>'
    for key, value in (("tool_calls", [call]), ("tool_calls", json.dumps([call])), ("function_call", call)):
        row = {"messages": [USER, {"role": "assistant", key: value}]}
        assert load(row, tooled)[1:] == (learned, "")


def test_calls_that_contradict_themselves_are_refused_and_other_keys_named(load: Loader, tooled: Tokenizer) -> None:
    def row(call: Any) -> Any:
        return {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}

    inner = {"name": "look", "arguments": {"city": "Oslo"}}
    for call, said in (
        ({"function": inner, "name": "go"}, "name: 'go'; contradicts function.name"),
        ({"function": inner, "arguments": {"city": "Rome"}}, "arguments: 'a dict'; contradicts function.arguments"),
        ({"function": {**inner, "input": {"x": 1}}}, "function.input: 'a dict'; contradicts function.arguments"),
    ):
        assert load.refusal(row(call), tooled).startswith(f"column messages[1].tool_calls[0].{said}: give one of them")
    said = load(row({"function": {**inner, "strict": True}, "note": "x"}), tooled)[2]
    assert said == "columns not used: tool_calls[].function.strict (1), tool_calls[].note (1)"


def test_geminis_thoughts_are_reasoning(load: Loader, tooled: Tokenizer, chatml: Tokenizer) -> None:
    parts = [{"text": "WHY", "thought": True}, {"text": "a", "thought": False}]
    row = {"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": parts}]}
    assert load(row, tooled)[1:] == ("<think>WHY</think>a<|im_end|>", "")
    assert "leaves out the parts with thought: true; put" in load.refusal(row, chatml)
    for turn in ({"role": "user", "parts": parts}, {"role": "model", "parts": [{"text": "a", "thought": "WHY"}]}):
        said = load.refusal({"contents": [turn, ANSWER]}, tooled)
        assert ".parts[0].thought: " in said and "must be true or false" in said
    called = {"role": "model", "parts": [{"text": "a", "functionCall": {"name": "f"}}]}
    assert "parts[0].functionCall: 'a dict'; must be text" in load.refusal({"contents": [USER, called]}, tooled)
    twice = {"role": "model", "parts": parts, "reasoning_content": "OTHER"}
    assert "contradicts the parts that are thoughts" in load.refusal({"contents": [USER, twice]}, tooled)


def test_the_first_name_that_has_a_value_is_read(load: Loader, chatml: Tokenizer, bytes_: Tokenizer) -> None:
    plain = load({"instruction": "q", "input": "c", "output": "a"}, bytes_)
    for row in (
        {"instruction": "q", "input": "", "context": "c", "output": "a"},
        {"instruction": "", "question": "q", "input": "c", "output": "a"},
        {"instruction": "q", "input": "c", "output": "", "response": "a"},
        {"prompt": "q", "input": "c", "completion": "", "response": "a"},
        {"messages": [], "instruction": "q", "input": "c", "output": "a"},
    ):
        assert load(row, bytes_) == plain
    question = {"prompt": "q", "completion": "", "response": "a"}
    assert load(question, bytes_) == load({"instruction": "q", "output": "a"}, bytes_)
    chat = load({"messages": [USER, ANSWER]}, chatml)
    turns = [
        {"role": "", "from": "human", "content": "", "value": "q"},
        {"role": "model", "content": [], "parts": ["a"]},
    ]
    for row in ({"messages": [], "conversations": [USER, ANSWER]}, {"messages": turns}):
        assert load(row, chatml) == chat
    # An empty value that stands alone is one.
    assert "### Input" not in load({"instruction": "q", "input": "", "output": "a"}, bytes_)[0]
    assert "user\n<|im_end|>" in load({"messages": [{"role": "user", "content": ""}, ANSWER]}, chatml)[0]
    assert "column messages: 'a list'; must be a list of 1 to" in load.refusal({"messages": []}, chatml)


def test_trls_lists_of_messages_may_be_json_text(load: Loader, chatml: Tokenizer) -> None:
    expected = load({"prompt": [USER], "completion": [ANSWER]}, chatml)
    asked, answered = json.dumps([USER]), json.dumps([ANSWER])
    for prompt, completion in ((asked, answered), ([USER], answered), (asked, "a")):
        row = {"prompt": prompt, "completion": completion}
        assert load(row, chatml) == load(row, chatml, use_chat_template=True) == expected
    for prompt, completion, column in (("q", answered, "completion"), (str([USER]), "a", "prompt")):
        row = {"prompt": prompt, "completion": completion}
        assert f"column {column}: " in load.refusal(row, chatml) and "looks like a list of" in load.refusal(row, chatml)
        assert completion in load(row, chatml, format="completion")[1]
    assert load({"prompt": "q", "completion": '[{"a": 1}]'}, chatml)[1].startswith('[{"a": 1}]')


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_what_is_left_out_has_the_name_that_the_row_gives_it(
    load: Loader, chatml: Tokenizer, bytes_: Tokenizer, name: str
) -> None:
    row = {"messages": [USER, {**ANSWER, name: "WHY"}]}
    assert f"leaves out {name}; put it into content" in load.refusal(row, chatml)
    assert f"turn 1 has {name}: only the chat template" in load.refusal(row, bytes_)
    call = {"role": "assistant", "content": "c", "function_call": {"name": "f", "arguments": "{}"}}
    called = {"messages": [USER, call, {"role": "function", "name": "f", "content": "1"}, ANSWER]}
    assert "leaves out the function_call of turn 1" in load.refusal(called, chatml)
    assert "turn 1 has function_call: only" in load.refusal(called, bytes_)


def test_what_a_template_leaves_out_is_refused(
    load: Loader, chatml: Tokenizer, tooled: Tokenizer, bytes_: Tokenizer
) -> None:
    thinks = {**ANSWER, "reasoning_content": "WHY"}
    assert load({"messages": [USER, thinks]}, tooled)[1] == "<think>WHY</think>a<|im_end|>"
    assert load({"messages": [USER, {**ANSWER, "thinking": "WHY"}]}, tooled)[1] == "<think>WHY</think>a<|im_end|>"
    assert "leaves out reasoning_content" in load.refusal({"messages": [USER, thinks]}, chatml)
    assert "leaves out the tool_calls of turn 1" in load.refusal(
        {"messages": [CALLED[0], {**CALLED[1], "content": "c"}, *CALLED[2:]]}, chatml
    )
    assert "leaves out the tools" in load.refusal({"messages": [USER, ANSWER], "tools": [TOOL]}, chatml)
    # What is left out may stand elsewhere in the row.
    look = {"role": "user", "content": "look S WHY"}
    assert "leaves out the tools" in load.refusal({"messages": [look, ANSWER], "tools": [TOOL]}, chatml)
    assert "leaves out reasoning_content" in load.refusal({"messages": [look, thinks]}, chatml)
    called = [look, {**CALLED[1], "content": "c"}, *CALLED[2:]]
    assert "leaves out the tool_calls of turn 1" in load.refusal({"messages": called}, chatml)
    for row in ({"messages": [USER, thinks]}, {"messages": CALLED}, {"messages": [USER, ANSWER], "tools": [TOOL]}):
        assert "only the chat template of a tokenizer can write" in load.refusal(row, bytes_)


def test_a_template_that_leaves_out_a_turn(load: Loader, chat_folder: Callable[[str], Path]) -> None:
    only = (
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    tokenizer = load_tokenizer(chat_folder(only + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"))
    row = {"messages": [{"role": "system", "content": "S"}, USER, ANSWER]}
    assert "leaves out what turn 0 (system) says" in load.refusal(row, tokenizer)
    said_twice = {"messages": [row["messages"][0], {**USER, "content": "S"}, ANSWER]}
    assert "leaves out what turn 0 (system) says" in load.refusal(said_twice, tokenizer)
    assert load({"messages": [USER, ANSWER]}, tokenizer)[1] == "a<|im_end|>"
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + only
    said = load.refusal(row, load_tokenizer(chat_folder(strict)))
    assert "refuses this row: no system (it would take this row with no system turn)" in said
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('users first') }}{% endif %}" + only
    said = load.refusal({"messages": [ANSWER, USER, ANSWER]}, load_tokenizer(chat_folder(strict)))
    assert "users first (it would take this row with a user's turn first)" in said


def test_sharegpts_calls_are_learned_and_observations_are_read(
    load: Loader, chatml: Tokenizer, bytes_: Tokenizer
) -> None:
    call = '{"name": "look", "arguments": {}}'
    turns = [("human", "q"), ("function_call", call), ("observation", "12 C"), ("gpt", "a")]
    row = {"conversations": [{"from": who, "value": what} for who, what in turns], "tools": ""}
    text, learned, said = load(row, chatml)
    assert learned == f"{call}<|im_end|>|a<|im_end|>" and said == ""
    assert "<|im_start|>tool\n12 C<|im_end|>" in text
    assert "### Tool:\n12 C\n\n### Assistant:\na<|eos|>" in load(row, bytes_)[0]


# -- refused, or named


#: Keys by which trainers say that a turn, or a part of it, is not learned.
MARKS = [("loss_mask", [0, 0]), ("token_weights", [0.0, 1.0]), ("compute_loss", "none"), ("lossMask", "[0]"), ("ignored", "on")]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "column chosen: belongs to a preference row (DPO)"),
        ({"messages": [USER, ANSWER], "rejected": [ANSWER]}, "column rejected: belongs to a preference row"),
        ({"prompt": "q", "completion": "a", "label": False}, "column label: 'False'; marks a good or bad answer (KTO)"),
        ({"messages": [USER, ANSWER], "label": True}, "column label: 'True'; marks a good or bad answer"),
        ({"messages": [USER, ANSWER], "kto_tag": True}, "column kto_tag: 'True'; marks a good or bad answer"),
        ({"prompt": "q", "completion": "a", "label": 0}, "column label: '0'; marks a good or bad answer (KTO)"),
        ({"messages": [USER, ANSWER], "rejected_messages": [USER]}, "column rejected_messages: belongs to a preference row"),
        ({"messages": [USER], "preferred_output": [ANSWER]}, "column preferred_output: belongs to a preference row"),
        ({"messages": [USER, {**ANSWER, "loss_weight": 0.5}]}, "column messages[1].loss_weight: '0.5'; is not known; say weight: 0"),
        ({"messages": [USER, {**ANSWER, "trainable": False}]}, "column messages[1].trainable: 'False'; is not known"),
        ({"messages": [USER, {**ANSWER, "Weight": 0}]}, "column messages[1].Weight: '0'; is not known"),
        ({"messages": [USER, {**ANSWER, "is_masked": "true"}]}, "column messages[1].is_masked: 'true'; is not known"),
        *(
            ({"messages": [USER, {**ANSWER, key: mark}]}, f"column messages[1].{key}: {(mark if isinstance(mark, str) else 'a list')!r}; is not known")
            for key, mark in MARKS
        ),
        *(
            ({"prompt": "q", "completion": "a", name: False}, f"column {name}: 'False'; must be 1 or true")
            for name in ("loss", "weights", "sample_weights", "loss_weights", "tokenWeight")
        ),
        ({"messages": [USER, ANSWER], "weights": 0}, "column weights: '0'; must be 1 or true"),
        *(
            ({"prompt": "q", "completion": "a", name: [0, 1]}, f"column {name}: cannot be followed")
            for name in ("masks", "loss_masks", "completion_masks", "assistant_tokens_mask", "assistantMask")
        ),
        *(
            ({"prompt": "q", "completion": "a", "label": label}, f"column label: '{label}'; marks a good or bad answer (KTO)")
            for label in ("1.0", "0.0", "yes", "No", "good", "bad", " TRUE")
        ),
        ({"messages": [USER, ANSWER], "kto_tag": "0"}, "column kto_tag: '0'; marks a good or bad answer"),
        ({"messages": [USER, ANSWER], "images": ["a.png"]}, "column images: cannot be read: loramux trains on text"),
        ({"instruction": "q", "output": "a", "weight": 0.5}, "column weight: '0.5'; must be 1 or true"),
        ({"text": "a", "weight": 0}, "column weight: '0'; must be 1 or true: rows have no weights"),
        ({"messages": [USER, ANSWER], "train": False}, "column train: 'False'; must be 1 or true"),
        ({"prompt": "q", "completion": "a", "completion_mask": [0, 1]}, "column completion_mask: cannot be followed"),
        ({"text": "q", "labels": [1, -100]}, "column labels: cannot be followed"),
        ({"messages": [USER, {**ANSWER, "mask": True}]}, "column messages[1].mask: 'True'; may mean either"),
        ({"messages": [USER, {**ANSWER, "train_detail": [1]}]}, "column messages[1].train_detail: 'a list'; is not supported"),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": {"x": 1}}, "column chat_template_kwargs: is not supported"),
        ({"messages": [USER, ANSWER], "documents": [{"text": "x"}]}, "column documents: is not supported"),
        ({"messages": [{"role": "system", "content": "A"}, USER, ANSWER], "system": "B"}, "column messages: has a system turn, and the row another"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "u"}}]}, ANSWER]}, "column messages[0].content[1].type: 'image_url'; must be text"),
        ({"messages": [{"role": "user", "content": {"text": "x"}}, ANSWER]}, "column messages[0].content: 'a dict'; must be text"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "column messages[1].content: is required: text (an answer; null or nothing stands only beside tool_calls)"),
        ({"messages": [USER, {"role": "critic", "content": "x"}]}, "column messages[1].role: 'critic'; must be one of system, developer, user, human, assistant, gpt"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}]}, "column messages[1].tool_calls[0].arguments: 'x'; must be a JSON object"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {}}]}]}, "column messages[1].tool_calls[0]: 'a dict'; must have function with name"),
        ({"messages": [USER, ANSWER], "tools": "none"}, "column tools: 'none'; must be a list of at most"),
        ({"messages": [USER, ANSWER], "tools": [{"type": "function"}]}, "column tools[0]: 'a dict'; must be a JSON object of a function with name"),
        ({"instruction": "q", "output": "a", "tools": [TOOL]}, "column tools: is for chat rows"),
        ({"instruction": "q", "output": "a", "history": ["x"]}, "column history[0]: 'x'; must be a list of at most 500 [question, answer] pairs"),
        ({"instruction": "q", "output": "a", "history": [["x", None]]}, "column history[0][1]: is required"),
        ({"question": "q", "answer": 1, "choices": ["a", "b"]}, "column answer: '1'; must be text"),
        ({"question": "q", "answer": "A", "choices": [["a"], "b"]}, "column choices: 'a list'; must be a list of up to 26 texts"),
        ({"question": "q", "answer": "A", "choices": ["a", None, "b"]}, "column choices: 'a list'; must be a list of up to 26 texts (null: at its end)"),
        ({"question": "q", "answer": "A", "choices": 5}, "column choices: '5'; must be a list of up to 26 texts"),
    ],
)  # fmt: skip
def test_rows_whose_meaning_cannot_be_followed_are_refused(
    row: dict[str, Any], said: str, load: Loader, chatml: Tokenizer
) -> None:
    assert load.refusal(row, chatml).startswith(said)


def test_every_column_and_key_that_is_not_read_is_named(load: Loader, chatml: Tokenizer, bytes_: Tokenizer) -> None:
    row = {
        "messages": [{**USER, "name": "bob", "feedback": 3}, {**ANSWER, "recipient": "all"}],
        "id": 7, "source": "x", "empty": "", "none": None, "list": [], "weight": 1,
    }  # fmt: skip
    data = load.data([row, {**row, "id": None}], chatml)
    assert data.report.unused == (
        ("id", 1),
        ("source", 2),
        ("turn.feedback", 2),
        ("turn.name", 2),
        ("turn.recipient", 2),
    )  # type: ignore[union-attr]
    assert str(data.report).endswith(
        "columns not used: id (1), source (2), turn.feedback (2), turn.name (2), turn.recipient (2)"
    )
    both = {"instruction": "a", "question": "b", "input": "c", "context": "d", "output": "e", "answer": "f"}
    assert load(both, bytes_)[2] == "columns not used: answer (1), context (1), question (1)"
    assert load({"text": "a", "label": 3}, bytes_)[2] == "columns not used: label (1)"
    # Words are looked for as a whole, and a figure is no mark.
    counts = {"constraint_count": 3, "glossary_id": 5, "pretrained": True}
    said = load({"messages": [USER, {**ANSWER, **counts}]}, chatml)[2]
    assert said == "columns not used: turn.constraint_count (1), turn.glossary_id (1), turn.pretrained (1)"
    others = {"loss": 0.53, "weight_kg": 70, "attention_mask": [1], "weights": 1, "sample_weights": "1.0"}
    assert load({"text": "a", **others}, bytes_)[2] == "columns not used: attention_mask (1), loss (1), weight_kg (1)"
    many = [{"text": "a", f"c{i:04}": 1} for i in range(1100)]
    report = load.data(many, bytes_).report
    assert len(report.unused) == 1001 and report.unused[-1] == ("(over 1000 further names)", 100)  # type: ignore[union-attr]
    assert str(report).endswith("c0011 (1) and 989 more")


def test_keys_that_parquet_gives_to_every_row_say_nothing(
    load: Loader, tooled: Tokenizer, tmp_path: Path, write: Write
) -> None:
    arrow = pytest.importorskip("pyarrow")
    call = {"function": {"name": "look", "arguments": {"city": "Oslo"}}}
    other = {"function": {"name": "look", "arguments": {"town": "Rome"}}}
    rows = [{"messages": [USER, {"role": "assistant", "tool_calls": [c]}], "tools": [TOOL]} for c in (call, other)]
    importlib.import_module("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), tmp_path / "calls.parquet")
    found = load_data(DataConfig(path=tmp_path / "calls.parquet"), tooled, vocab_size=tooled.vocab_size, seed=0)
    expected = load_data(DataConfig(path=write(rows)), tooled, vocab_size=tooled.vocab_size, seed=0)
    assert found.train.sha256 == expected.train.sha256

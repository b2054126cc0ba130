"""What a chat template leaves out is found by marks, wherever else the same words stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loramux_runtime.data import DataConfig, load_data, load_tokenizer
from loramux_traces.errors import InvalidInputError

Write = Callable[..., Path]
Folder = Callable[[str], Path]
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def turns(inner: str, before: str = "", which: str = "") -> str:
    return (
        before
        + "{% for m in messages"
        + which
        + " %}<|im_start|>{{ m.role }}\n"
        + inner
        + "<|im_end|>\n{% endfor %}"
        + ASK
    )


@pytest.fixture
def report(write: Write, chat_folder: Folder) -> Callable[..., str]:
    """The report on a row that a template writes, or why it is refused."""

    def load(template: str, row: Any) -> str:
        tokenizer = load_tokenizer(chat_folder(template))
        config = DataConfig(path=write([row]), max_tokens=4096, shuffle=False)
        try:
            return str(load_data(config, tokenizer, vocab_size=tokenizer.vocab_size, seed=0).report)
        except InvalidInputError as error:
            return str(error)

    return load


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("written", "calls", "lost"),
    [
        ("c.function | tojson", [call("f", {"x": 1}), call("f", {"x": 2})], ""),
        ("c.function.name", [call("f", {"x": "q"})], "arguments of the tool_calls of turn 1 (call 0)"),
        ("c.function.name", [call("f", {})], ""),
        ("c.function.name ~ c.function.arguments.n", [call("f", {"n": 3})], ""),
        ("c.function.name ~ (c.function.arguments | length)", [call("f", {"n": None})], ""),
        ("c.function.arguments | tojson", [call("f", {"x": "f"})], "tool_calls of turn 1 (call 0)"),
        ("(c.function.name + c.function.arguments) | upper", [call("f", {"x": [1], "y": {"z": True}})], ""),
    ],
)
def test_calls(written: str, calls: list[Any], lost: str, report: Callable[..., str]) -> None:
    template = turns("{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ " + written + " }}{% endfor %}")
    said = report(template, {"messages": [USER, {"role": "assistant", "tool_calls": calls}]})
    assert f"leaves out the {lost}" in said if lost else said.endswith(": 1 chat rows")


def test_a_second_call_of_the_same_function(report: Callable[..., str]) -> None:
    first = turns("{{ m.content or '' }}{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% endif %}")
    calls = [call("f", {"x": 1}), call("f", {"x": 1})]
    said = report(first, {"messages": [USER, {"role": "assistant", "tool_calls": calls}]})
    assert "leaves out the tool_calls of turn 1 (call 1)" in said
    assert report(first, {"messages": [USER, {"role": "assistant", "tool_calls": calls[:1]}]}).endswith("1 chat rows")


@pytest.mark.parametrize(
    ("written", "lost"),
    [
        ("t | tojson", ""),
        ("t.function.name ~ t.function.description ~ (t.function.parameters | tojson)", ""),
        ("t.function.name ~ (t.function.parameters | tojson)", "descriptions of the tools of this row (tool 0)"),
        ("t.function.name ~ t.function.description", "parameters of the tools of this row (tool 0)"),
        ("t.function.description ~ (t.function.parameters | tojson)", "tools of this row (tool 0)"),
    ],
)
def test_tools(written: str, lost: str, report: Callable[..., str]) -> None:
    parameters = {"type": "object", "properties": {"f": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "description": "f", "parameters": parameters}}
    template = turns("{{ m.content }}", "{% for t in tools or [] %}{{ " + written + " }}{% endfor %}")
    said = report(template, {"messages": [{**USER, "content": "f"}, ANSWER], "tools": [tool]})
    assert f"leaves out the {lost}" in said if lost else said.endswith(": 1 chat rows")


def test_a_later_turn_whose_words_stand_elsewhere(report: Callable[..., str]) -> None:
    first = turns("{{ m.content }}", which=" if m.role != 'system' or loop.first")
    later = turns("{% if m.role != 'system' or loop.index0 == 0 %}{{ m.content }}{% endif %}")
    system = {"role": "system", "content": "S"}
    row = {"messages": [system, USER, ANSWER, {**system, "content": "be"}, {**USER, "content": "to be"}, ANSWER]}
    assert "leaves out what turn 3 (system) says" in report(later, row)
    assert "leaves out what turn 1 (user) says" not in report(first, row)
    del row["messages"][3]
    assert report(later, row).endswith("1 chat rows")


def test_turns_of_a_long_chat(report: Callable[..., str]) -> None:
    cut = turns("{% if loop.index0 != 20 %}{{ m.content }}{% endif %}")
    said = [{**turn, "content": "same"} for _ in range(12) for turn in (USER, ANSWER)]
    assert "leaves out what turn 20 (user) says" in report(cut, {"messages": said})
    assert report(cut, {"messages": said[:20]}).endswith("1 chat rows")


def test_only_earlier_reasoning_may_be_left_out(report: Callable[..., str]) -> None:
    thinks = {**ANSWER, "reasoning_content": "WHY"}
    some = turns("{% if m.reasoning_content and loop.WHICH %}{{ m.reasoning_content }}{% endif %}{{ m.content }}")
    row = {"messages": [USER, thinks, {**USER, "content": "WHY"}, thinks]}
    earlier = "1 with reasoning that the chat template leaves out of earlier turns"
    assert earlier in report(some.replace("WHICH", "last"), row)
    said = report(some.replace("WHICH", "index0 == 1"), row)
    assert "leaves out reasoning_content of the last answer, which is learned" in said
    assert report(some.replace("WHICH", "index"), row).endswith("1 chat rows")


def test_a_template_that_hides_marks_costs_no_hundred_renderings_of_each_chat(
    write: Write, chat_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(chat_folder(turns("{{ m.content | length }}")))
    row = {"messages": [{**turn, "content": "same" * (at + 1)} for at, turn in enumerate((USER, ANSWER) * 10)]}
    written: list[int] = []
    chat = type(tokenizer).chat
    monkeypatch.setattr(type(tokenizer), "chat", lambda self, m, **k: written.append(len(m)) or chat(self, m, **k))
    monkeypatch.setattr("loramux_runtime.data.chat_losses._TURNS_TRIED", 400)
    config = DataConfig(path=write([row] * 40), max_tokens=4096)
    assert str(load_data(config, tokenizer, vocab_size=tokenizer.vocab_size, seed=0).report).startswith(
        "rows.jsonl: 40 "
    )
    tried = sum(count == 20 for count in written)
    assert 100 < tried < 300  # one of each turn would be 800

"""Chat templates: written as transformers writes them, at a given time, and never without end."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from loramux_runtime.data import DataConfig, JobData, Tokenizer, load_data, load_tokenizer, what_changed
from loramux_runtime.data.chat_template import chat_template
from loramux_runtime.data.jinja_limits import TemplateLimitError
from loramux_traces.errors import InvalidInputError

Write = Callable[..., Path]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
DATED = (
    "[{{ strftime_now('%d %b %Y') }}]{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EVENING = datetime(2026, 3, 1, 23, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def dated(chat_folder: Callable[[str], Path]) -> Tokenizer:
    return load_tokenizer(chat_folder(DATED))


def load(path: Path, tokenizer: Tokenizer, at: datetime | None = None, **given: Any) -> JobData:
    config = DataConfig(path=path, **given)
    return load_data(config, tokenizer, vocab_size=tokenizer.vocab_size, seed=0, rendered_at=at)


def test_the_date_in_a_template_is_the_one_given_in_utc(
    write: Write, dated: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write([{"messages": CHAT}])
    data = load(path, dated, EVENING)
    assert dated.decode(data.train[0][0].tolist()).startswith("[01 Mar 2026]<|im_start|>user\nhi")
    for zone in ("Etc/GMT+12", "Etc/GMT-14"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert load(path, dated, EVENING.replace(tzinfo=None)).train.sha256 == data.train.sha256
        same_instant = EVENING.astimezone(timezone(timedelta(hours=9)))
        assert load(path, dated, same_instant).train.sha256 == data.train.sha256
    monkeypatch.undo()
    time.tzset()
    tomorrow = load(path, dated, EVENING + timedelta(hours=1))
    assert tomorrow.train.sha256 != data.train.sha256
    assert what_changed(data.made_from, tomorrow.made_from) == (
        "the date (2026-03-01T23:30:00+00:00 -> 2026-03-02T00:30:00+00:00)"
    )
    today = load(path, dated)
    assert datetime.now(UTC).strftime("%Y") in dated.decode(today.train[0][0].tolist())


def test_what_changed_is_named(write: Write, chatml: Tokenizer, bytes_: Tokenizer, dated: Tokenizer) -> None:
    before = load(write([{"messages": CHAT}]), chatml).made_from
    assert what_changed(before, load(write([{"messages": CHAT}], "same.jsonl"), chatml).made_from) == ""
    assert what_changed(before, load(write([{"messages": CHAT}] * 2), chatml).made_from) == "the data file"
    path = write([{"messages": CHAT}])
    assert what_changed(before, load(path, dated, EVENING).made_from) == (
        "the chat template, the date (none -> 2026-03-01T23:30:00+00:00)"
    )
    other = load(path, bytes_).made_from
    assert what_changed(before, other).startswith("the tokenizer, the chat template (")
    assert what_changed(before, {**before, "the library tokenizers": "9.9"}) == (
        f"the library tokenizers ({before['the library tokenizers']} -> 9.9)"
    )
    held_out = load(path, chatml, eval_path=write([{"messages": CHAT[::-1] + CHAT}], "eval.jsonl")).made_from
    assert what_changed(before, held_out).startswith("the held-out file (none -> ")


TEMPLATES = [
    DATED.replace("strftime_now('%d %b %Y')", "bos_token"),
    "{%- set ns = namespace(n=0, self='x') %}\n{%- for m in messages if m.role != 'system' %}\n  {%- set ns.n = ns.n + 1 %}"
    "{{ loop.index ~ ' ' ~ m.content | trim }}{% if loop.last %}{% break %}{% endif %}\n{%- endfor %}{{ ns.n }}",
    "{% for m in messages %}{% generation %}{% set x = m.content %}{{ x }}{% endgeneration %}{{ x }}{% endfor %}",
    "{% macro show(m) %}<{{ m.role }}>{{ m | tojson }}{% endmacro %}{% for m in messages[::-1] %}{{ show(m) }}{% endfor %}",
    "{{ tools | tojson(indent=2) }}{{ '%s:%03d' % (messages[0].role, 7) }}{{ 'a' * 3 }}{{ messages | map(attribute='role') | join(',') }}",
    "{% if tools is none %}none{% endif %}{{ documents }}{{ messages[0].content.split('i')[0] }}{{ dict(a=1) | tojson }}",
]


@pytest.mark.parametrize("source", TEMPLATES)
def test_templates_write_what_transformers_has_them_write(source: str, chatml: Tokenizer) -> None:
    messages = [{"role": "system", "content": " <é> "}, *CHAT]
    for ask in (False, True):
        expected = chatml.hf.apply_chat_template(
            messages, chat_template=source, tokenize=False, add_generation_prompt=ask
        )
        found = chat_template(source).render(messages, ask=ask, special_tokens=chatml.hf.special_tokens_map)
        assert found == expected


NESTED = "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
DOUBLED = "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = "
ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for a in range(9999) %}{% for b in range(9999) %}{{ 'x' }}{% endfor %}{% endfor %}",
    "{% set y %}{% for i in range(3000) %}{{ 'a' * 16000000 }}{% endfor %}{% endset %}",
    NESTED + "{{ ns.x }}",
    NESTED + "{{ ns.x | tojson }}",
    NESTED + "{{ (ns.x | string) | length }}",
    DOUBLED + "ns.x ~ ns.x %}{% endfor %}",
    DOUBLED + "ns.x + ns.x %}{% endfor %}",
    DOUBLED + "ns.x.replace('a', ns.x) %}{% endfor %}",
    DOUBLED + "ns.x | replace('a', ns.x) %}{% endfor %}",
    DOUBLED + "ns.x | indent(ns.x, true) %}{% endfor %}",
    "{{ 'a' * 1000000000 }}",
    "{{ [0] * 1000000000 }}",
    "{{ 9 ** 99999999 }}",
    "{{ 'a'.center(100000000) }}",
    "{{ 'a' | center(100000000) }}",
    "{{ '%99999999d' % 3 }}",
    "{{ '%*d' % (99999999, 3) }}",
    "{{ '{:>99999999}'.format(3) }}",
    "{{ '{:>{}}'.format(3, 99999999) }}",
    "{{ messages | tojson(indent=99999999) }}",
    "{{ '\t'.expandtabs(99999999) }}",
    "x" * (1 << 20),
]


@pytest.mark.parametrize("source", ENDLESS, ids=range(len(ENDLESS)))
def test_a_template_without_end_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loramux_runtime.data.jinja_limits.MAX_OPERATIONS", 50_000)
    monkeypatch.setattr("loramux_runtime.data.jinja_limits._MAX_ELEMENTS", 10_000)
    with pytest.raises(TemplateLimitError):
        chat_template(source).render(CHAT)


@pytest.mark.parametrize(
    "source", ["{{ [1, 2] | random }}", "{{ lipsum() }}", "{{ 'a'.upper }}", "{{ raise_exception }}"]
)
def test_a_template_cannot_write_what_is_another_text_next_time(source: str) -> None:
    with pytest.raises((TemplateLimitError, TemplateError)):
        chat_template(source).render(CHAT)


def test_a_broken_template_that_is_not_used_does_not_matter(write: Write, chat_folder: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(chat_folder("{% for"))
    assert "the chat template" in load(write([{"text": "a"}]), tokenizer).made_from


def test_a_template_without_end_is_named_once_and_not_for_every_row(
    write: Write, chat_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loramux_runtime.data.jinja_limits.MAX_OPERATIONS", 5_000)
    for source, said in (
        (ENDLESS[0], "it does not end within 5000 operations"),
        ("{% for", "its chat template cannot be used: unexpected"),
    ):
        folder = chat_folder(source)
        with pytest.raises(InvalidInputError, match=said) as caught:
            load(write([{"messages": CHAT}] * 100), load_tokenizer(folder))
        assert str(folder) in str(caught.value) and caught.value.total == 1
    with pytest.raises(InvalidInputError, match="refuses this row: maximum recursion depth"):
        load(
            write([{"messages": CHAT}]), load_tokenizer(chat_folder("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"))
        )


def test_a_template_that_waits_in_one_filter_is_stopped_by_its_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loramux_runtime.data.jinja_limits.MAX_CPU_S", 0.05)
    with pytest.raises(TemplateLimitError, match="processor seconds"):
        chat_template("{% for i in range(9999) %}{{ range(9999) | sum }}{% endfor %}").render(CHAT)

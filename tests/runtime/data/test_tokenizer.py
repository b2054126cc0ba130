"""Tokenizers: the byte-level one, those of model folders, and folders that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from loramux_runtime.data import Tokenizer, load_tokenizer
from loramux_traces.errors import InvalidInputError

SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>")


@given(text=st.text())
def test_a_byte_is_its_own_token(bytes_: Tokenizer, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    assume(not any(name in text for name in SPECIAL))  # those are one token each, below
    ids = bytes_.encode([text]).ids.tolist()
    assert ids == [256, *text.encode()]
    assert bytes_.decode(ids[1:]) == text
    assert ids == bytes_.hf(text)["input_ids"]


def test_the_byte_tokenizer_names_its_special_tokens(bytes_: Tokenizer) -> None:
    assert (bytes_.vocab_size, bytes_.bos_id, bytes_.eos_id, bytes_.pad_id) == (259, 256, 257, 258)
    assert bytes_.decode([257]) == bytes_.eos_text
    assert not bytes_.has_chat_template
    named = bytes_.encode(["a<|eos|>b"]).ids.tolist()  # as in every Hugging Face tokenizer
    assert named == [256, ord("a"), 257, ord("b")] == bytes_.hf("a<|eos|>b")["input_ids"]


def test_a_folder_gives_its_own_or_bytes(chat_folder: Callable[[], Path], tmp_path: Path) -> None:
    folder = chat_folder()
    loaded = load_tokenizer(folder)
    assert (loaded.vocab_size, loaded.decode([loaded.eos_id]), loaded.has_chat_template) == (99, "<|im_end|>", True)
    (tmp_path / "config.json").write_text("{}")
    assert load_tokenizer(tmp_path).name == load_tokenizer(None).name == "bytes"


def test_saved_truncation_and_padding_are_not_applied(chat_folder: Callable[[], Path]) -> None:
    folder = chat_folder()
    saved = json.loads((folder / "tokenizer.json").read_text())
    saved["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    assert len(load_tokenizer(folder).encode(["abcdefgh"])) == 8


def test_folders_that_are_refused(chat_folder: Callable[[], Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no such model folder"):
        load_tokenizer(tmp_path / "none")
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(InvalidInputError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(InvalidInputError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
    folder = chat_folder()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "eos_token"}))
    with pytest.raises(InvalidInputError, match="no end-of-sequence token"):
        load_tokenizer(folder)


def test_code_in_a_folder_is_never_run(chat_folder: Callable[[], Path], tmp_path: Path) -> None:
    folder = chat_folder()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.update(tokenizer_class="Evil", auto_map={"AutoTokenizer": [None, "evil.Evil"]})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    try:
        load_tokenizer(folder)
    except InvalidInputError as error:
        assert "cannot be loaded" in str(error)
    assert not (tmp_path / "ran").exists()


def test_a_chat_template_cannot_reach_python(chat_folder: Callable[[str], Path], tmp_path: Path) -> None:
    from loramux_runtime.data.templates import Message

    tokenizer = load_tokenizer(chat_folder("{{ messages.__class__.__base__.__subclasses__() }}"))
    with pytest.raises(ValueError, match="refuses this row"):
        tokenizer.chat([Message("user", "a")])

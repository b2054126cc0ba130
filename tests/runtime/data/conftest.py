"""What the data tests share: files of rows, and tokenizers made on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from loramux_runtime.data.tokenizer import Tokenizer, byte_tokenizer, load_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def bytes_() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(rows, name)` as JSON lines (a str is a line as it stands), or bytes as they are."""

    def do(rows: Iterable[Any] | bytes, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        if isinstance(rows, bytes):
            path.write_bytes(rows)
        else:
            path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), "utf-8")
        return path

    return do


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A model folder with a character-level tokenizer and a chat template."""

    def make(template: str = CHATML, eos: str = "<|im_end|>", front: str = "", back: str = "") -> Path:
        folder = tmp_path_factory.mktemp("model")
        characters = sorted({chr(c) for c in range(32, 127)} | {"\n"})
        backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(characters)}, merges=[]))
        backend.decoder = decoders.Fuse()
        special = dict.fromkeys(("<s>", "<|im_start|>", "<|im_end|>", eos, *front.split(), *back.split()))
        backend.add_special_tokens([AddedToken(t, special=True) for t in special])
        if front or back:
            around = [(t, backend.token_to_id(t)) for t in (*front.split(), *back.split())]
            backend.post_processor = processors.TemplateProcessing(
                single=f"{front} $A {back}".strip(), special_tokens=around
            )
        hf = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=eos)
        hf.chat_template = template
        hf.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def chatml(chat_folder: Callable[[], Path]) -> Tokenizer:
    return load_tokenizer(chat_folder())


@pytest.fixture(scope="session")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A BPE that merges ": " and "b" into ":b", across any boundary put between them.

    It has no pre-tokenizer.
    """
    folder = tmp_path_factory.mktemp("bpe")
    characters = [chr(c) for c in range(32, 127)] + ["\n"]
    vocab = {c: i for i, c in enumerate([*characters, ":b", ":ba"])}
    backend = Backend(models.BPE(vocab=vocab, merges=[(":", "b"), (":b", "a")]))
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def byte_bpe(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Tokenizer]:
    """A byte-level BPE as GPT-2, Llama 3 and Qwen have it; its offsets leave blanks out, or not."""
    made: dict[bool, Tokenizer] = {}

    def make(trimmed: bool) -> Tokenizer:
        if trimmed not in made:
            backend = Backend(models.BPE())
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(
                vocab_size=300, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
            )
            backend.train_from_iterator(["ab ab  aab\n\n ba éé 🙂🙂 x. \t\n"] * 20, trainer)
            backend.post_processor = processors.ByteLevel(trim_offsets=trimmed)
            folder = tmp_path_factory.mktemp("byte-bpe")
            PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(folder)
            made[trimmed] = load_tokenizer(folder)
        return made[trimmed]

    return make

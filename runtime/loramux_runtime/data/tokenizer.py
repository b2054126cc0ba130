"""This module gives a model's tokenizer, or the byte-level one that ships with loramux.

The byte-level one is for models without any.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from loramux_runtime.data.chat_template import ChatTemplate, chat_template
from loramux_runtime.data.jinja_limits import TemplateLimitError
from loramux_runtime.data.source import invalid
from loramux_runtime.data.templates import Message
from loramux_runtime.data.tokens import Tokens
from loramux_traces.errors import InvalidInputError, printable
from loramux_traces.files import MAX_TOKENIZER, check_folder

os.environ.setdefault("HF_HUB_OFFLINE", "1")

BYTE_NAME: Final = "bytes"
_FILE: Final = "tokenizer.json"
#: Files that say a model has a tokenizer of its own, so that bytes would be the wrong ids for it.
_OTHERS: Final = ("tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt")
_BOS, _EOS, _PAD = "<|bos|>", "<|eos|>", "<|pad|>"


class TokenizerFailure(Exception):
    """Tells that a tokenizer failed on the text `index` of those it was given."""

    def __init__(self, index: int, said: str) -> None:
        super().__init__(said)
        self.index = index
        self.said = said


def _failed(error: BaseException) -> bool:
    """Return whether an error is the tokenizer's own.

    A panic of its Rust code is no Exception, and its class has no public name.
    """
    own = isinstance(error, Exception) or type(error).__name__ == "PanicException"
    return own and not isinstance(error, MemoryError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """Wraps a tokenizer that knows where in the text its tokens are."""

    name: str
    hf: Any
    """transformers' PreTrainedTokenizerFast."""
    vocab_size: int
    """The largest token id plus one."""
    eos_id: int
    eos_text: str
    bos_id: int | None
    pad_id: int | None
    added: tuple[tuple[int, ...], tuple[int, ...]]
    """Ids that the tokenizer puts before and after every text."""
    special_ids: frozenset[int]
    """Ids of its special tokens; with these chat templates end turns."""
    sha256: str
    """SHA-256 of what makes tokens of a text; the chat template is not in it."""

    @property
    def has_chat_template(self) -> bool:
        """Return whether the model came with a chat template."""
        return bool(self.hf.chat_template)

    @property
    def chat_source(self) -> str:
        """Return the text of the chat template, or of all of them as JSON; it may be no program."""
        template = self.hf.chat_template
        return template if isinstance(template, str) else json.dumps(template, sort_keys=True)

    @property
    def tells_time(self) -> bool:
        """Return whether the chat template may write when it is written."""
        return self.has_chat_template and "strftime_now" in self.chat_source

    def encode(self, texts: Sequence[str], *, add_special: bool = True) -> Tokens:
        """Return the tokens of each text, whole (never cut).

        `add_special` adds what the model wants around them (its bos). Raises TokenizerFailure where
        the tokenizer fails on one of them (its regular expression gives up, say).
        """
        backend = self.hf.backend_tokenizer
        try:
            encodings = backend.encode_batch(list(texts), add_special_tokens=add_special)
        except BaseException as error:
            if not _failed(error):
                raise
            if len(texts) == 1:
                raise TokenizerFailure(0, _said(error)) from error
            for index, text in enumerate(texts):
                try:
                    self.encode([text], add_special=add_special)
                except TokenizerFailure as failure:
                    raise TokenizerFailure(index, failure.said) from error
            raise TokenizerFailure(0, _said(error)) from error
        return Tokens.of(encodings)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the tokens, special ones included."""
        return str(self.hf.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def chat_template(self, *, tools: bool = False) -> ChatTemplate:
        """Return the model's chat template; with `tools` its one for tools, where it has such.

        Raises InvalidInputError for a template that is no program.
        """
        try:
            return chat_template(self.hf.get_chat_template(tools=[] if tools else None))
        except Exception as error:  # jinja fails in many ways on what is no template
            raise invalid(self.name, f"its chat template cannot be used: {_said(error)}") from error

    def chat(
        self,
        messages: Sequence[Message],
        *,
        ask: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        rendered_at: datetime | None = None,
    ) -> str:
        """Return the conversation in the model's chat template.

        With `ask` the text ends where the model is to answer. Raises ValueError where the template
        refuses the conversation, InvalidInputError where the template does not end.
        """
        template = self.chat_template(tools=tools is not None)
        turns = [_turn(message) for message in messages]
        try:
            return template.render(
                turns, tools=tools, ask=ask, rendered_at=rendered_at, special_tokens=self.hf.special_tokens_map
            )
        except TemplateLimitError as error:
            raise invalid(self.name, f"its chat template cannot be used: it {error}") from error
        except Exception as error:  # a template is the model's own program: it may fail in any way
            raise ValueError(f"the model's chat template refuses this row: {_said(error)}") from error


def _said(error: BaseException) -> str:
    return printable(" ".join(str(error).split()), 200) or type(error).__name__


def _turn(message: Message) -> dict[str, Any]:
    """Return a turn as templates expect it; what it does not have is missing, not None."""
    turn = {"role": message.role, **message.extra}
    if message.content is not None:
        turn["content"] = message.content
    return turn


def _fast_class() -> Any:
    # Imported here: transformers takes seconds, and most of this package needs only `tokenizers`.
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast


def _wrapped(name: str, hf: Any) -> Tokenizer:
    if not getattr(hf, "is_fast", False):
        raise invalid(name, f"its tokenizer cannot say where its tokens are in the text: it needs a {_FILE}")
    if hf.eos_token_id is None:
        raise invalid(name, "its tokenizer names no end-of-sequence token (eos_token in tokenizer_config.json)")
    # A tokenizer.json may carry the settings of its last use; rows are cut here, and never padded.
    hf.backend_tokenizer.no_truncation()
    hf.backend_tokenizer.no_padding()
    return Tokenizer(
        name=name,
        hf=hf,
        vocab_size=1 + max(hf.get_vocab().values()),
        eos_id=int(hf.eos_token_id),
        eos_text=str(hf.eos_token),
        bos_id=hf.bos_token_id,
        pad_id=hf.pad_token_id,
        added=_added(hf.backend_tokenizer),
        special_ids=frozenset(
            (int(hf.eos_token_id), *(i for i, token in hf.added_tokens_decoder.items() if token.special))
        ),
        sha256=hashlib.sha256(f"{hf.eos_token_id} {hf.backend_tokenizer.to_str()}".encode()).hexdigest(),
    )


def _added(backend: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that a tokenizer puts before and after every text."""
    plain, whole = backend.encode("a", add_special_tokens=False).ids, backend.encode("a").ids
    for at in range(len(whole) - len(plain) + 1):
        if whole[at : at + len(plain)] == plain:
            return tuple(whole[:at]), tuple(whole[at + len(plain) :])
    return (), ()


def _byte_characters() -> list[str]:
    """Return the printable characters that byte-level tokenizers write for bytes 0 ... 255.

    This is GPT-2's table.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in plain}
    others = (byte for byte in range(256) if byte not in table)
    table.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    return [table[byte] for byte in range(256)]


def byte_tokenizer() -> Tokenizer:
    """Make the byte-level tokenizer, in code and not from a file.

    A token id is a byte of the UTF-8 text; 256 begins and 257 ends a sequence, 258 pads.
    """
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(_byte_characters())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (_BOS, _EOS, _PAD)])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", special_tokens=[(_BOS, backend.token_to_id(_BOS))]
    )
    hf = _fast_class()(tokenizer_object=backend, bos_token=_BOS, eos_token=_EOS, pad_token=_PAD)
    return _wrapped(BYTE_NAME, hf)


def load_tokenizer(path: Path | str | None) -> Tokenizer:
    """Load the tokenizer of a local model folder; no network, no code of the folder is run.

    It is the byte-level tokenizer for None and for a folder with no tokenizer file at all. Raises
    InvalidInputError for a folder whose tokenizer is of another kind than tokenizer.json, is
    broken, or names no end of sequence.
    """
    if path is None:
        return byte_tokenizer()
    folder = Path(path)
    if not folder.is_dir():
        raise invalid(folder, "no such model folder")
    check_folder(folder, (_FILE, *_OTHERS), MAX_TOKENIZER, "a file of a tokenizer")
    if not (folder / _FILE).is_file():
        if any((folder / name).exists() for name in _OTHERS):
            raise invalid(folder, f"has a tokenizer, but no {_FILE}: save it as one with transformers")
        return byte_tokenizer()
    from transformers import AutoTokenizer

    try:
        if (folder / "tokenizer_config.json").is_file() or (folder / "config.json").is_file():
            hf: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        else:
            hf = _fast_class()(tokenizer_file=str(folder / _FILE))
        return _wrapped(str(folder), hf)
    except InvalidInputError:
        raise
    except BaseException as error:  # tokenizers raises plain Exception for a bad file, and panics
        if not _failed(error):
            raise
        raise invalid(folder, f"its tokenizer cannot be loaded: {_said(error)}") from error

"""This module has jobs of one data file share its rows: they are read once, and are there once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final, Generic, TypeVar

from loramux_runtime.data import DataConfig, FileReport, TokenisedRows, Tokenizer
from loramux_runtime.data.load import OnProgress, tokenise_file
from loramux_traces.errors import InvalidInputError

FILES: Final = 8
"""Files whose rows are remembered for the next job."""
SPLIT_FIELDS: Final = frozenset(("path", "shuffle", "eval_path", "eval_fraction", "eval_rows"))
"""Fields of the data settings that do not change the rows of a file, only which are trained on."""

Made = tuple[TokenisedRows, FileReport] | InvalidInputError
T = TypeVar("T")


def file_key(path: Path, config: DataConfig, vocab_size: int) -> str:
    """Return what tells the rows of one file from others, the tokenizer and the time aside."""
    return f"{path}|{config.model_dump_json(exclude=set(SPLIT_FIELDS))}|{vocab_size}"


class Recent(Generic[T]):
    """Remembers what was made of the latest few files."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, T] = OrderedDict()

    def get(self, key: str, make: Callable[[], T]) -> T:
        """Return what is known under a key, or make it."""
        found = self._known.pop(key) if key in self._known else make()
        self._known[key] = found
        while len(self._known) > FILES:
            self._known.popitem(last=False)
        return found


class SharedRows:
    """Remembers the rows of the latest files, or what is wrong with them.

    It is of one tokenizer, and of one time that chat templates are told.
    """

    def __init__(self) -> None:
        self._recent: Recent[Made] = Recent()

    def tokenise(
        self,
        path: Path,
        config: DataConfig,
        tokenizer: Tokenizer,
        vocab_size: int,
        rendered_at: datetime,
        progress: OnProgress | None,
    ) -> tuple[TokenisedRows, FileReport]:
        """Return the rows of a file as `load.tokenise_file` does, read at most once in a row."""

        def make() -> Made:
            try:
                return tokenise_file(path, config, tokenizer, vocab_size, rendered_at, progress)
            except InvalidInputError as error:
                return error

        found = self._recent.get(file_key(path, config, vocab_size), make)
        if isinstance(found, InvalidInputError):
            raise found
        return found

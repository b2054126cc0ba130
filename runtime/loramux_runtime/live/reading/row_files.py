"""This module keeps tokenised rows in the state folder, named by their content.

Jobs of one data file share one copy, mapped into memory where it is trained on, and a job that has
begun keeps the rows that it began with, whatever happens to its data file.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import numpy as np

from loramux_runtime.data.rows import TokenisedRows
from loramux_traces.arrays import Ints
from loramux_traces.errors import StateError
from loramux_traces.filesafe import sync

ROWS: Final = "rows"
"""Name of the folder in the state folder."""
_TOKENS: Final = "tokens-"
_ARRAYS: Final = ("ids", "learned", "starts")
_TYPES: Final = {"ids": np.int32, "learned": np.bool_, "starts": np.int64}


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Holds rows that are mapped and of which no page is in memory until it is read."""

    tokens: TokenisedRows
    choice: Ints | None
    """Which rows of those tokens; None: all."""

    def rows(self) -> TokenisedRows:
        """Return the rows, as one job has them."""
        return self.tokens if self.choice is None else self.tokens.select(self.choice)


class RowFiles:
    """Keeps rows below one folder: `tokens-SHA/` holds the tokens, `rows-SHA.npy` a choice of them.

    Raises StateError where something cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mapped: WeakValueDictionary[str, TokenisedRows] = WeakValueDictionary()

    def keep_tokens(self, rows: TokenisedRows) -> tuple[str, TokenisedRows]:
        """Write all rows of a file; return their name and the same rows, mapped."""
        name = f"{_TOKENS}{rows.sha256}"
        final = self.folder / name
        if not final.is_dir():
            arrays = {"ids": rows.ids, "learned": rows.learned, "starts": rows.starts}
            try:
                self.folder.mkdir(exist_ok=True)
                temporary = self.folder / f".{name}.tmp"
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                for key, array in arrays.items():
                    np.save(temporary / f"{key}.npy", array, allow_pickle=False)
                    sync(temporary / f"{key}.npy")
                sync(temporary)
                temporary.rename(final)
                sync(self.folder)
            except OSError as error:
                shutil.rmtree(temporary, ignore_errors=True)
                raise StateError(f"{final}: the rows cannot be written ({error.strerror})") from error
        return name, self._tokens(name)

    def keep_choice(self, tokens: str, whole: TokenisedRows, rows: TokenisedRows) -> dict[str, Any]:
        """Write which rows of the kept tokens a job has; return what `open` takes.

        `whole` are all rows of those tokens.
        """
        if len(rows) == len(whole) and np.array_equal(rows.begins, whole.begins):
            return {"tokens": tokens, "choice": None}
        chosen = np.searchsorted(whole.begins, rows.begins).astype(np.int64)
        name = f"rows-{hashlib.sha256(tokens.encode() + chosen.tobytes()).hexdigest()}.npy"
        final = self.folder / name
        if not final.is_file():
            temporary = self.folder / f".{name}.tmp"
            try:
                with temporary.open("wb") as file:
                    np.save(file, chosen, allow_pickle=False)
                sync(temporary)
                temporary.rename(final)
                sync(self.folder)
            except OSError as error:
                temporary.unlink(missing_ok=True)
                raise StateError(f"{final}: the rows cannot be written ({error.strerror})") from error
        return {"tokens": tokens, "choice": name}

    @staticmethod
    def sha256(kept: Mapping[str, Any], rows: TokenisedRows) -> str:
        """Return the SHA-256 of kept rows; all rows of a file have it in their name."""
        return rows.sha256 if kept["choice"] is not None else str(kept["tokens"]).removeprefix(_TOKENS)

    def has(self, tokens: str) -> bool:
        """Return whether these tokens are still kept."""
        return (self.folder / tokens).is_dir()

    def open(self, kept: Mapping[str, Any]) -> KeptRows:
        """Map kept rows; StateError where they are not there any more.

        Jobs of one file share its mapping, and who has it keeps it, whatever becomes of the file.
        """
        name = str(kept["tokens"])
        tokens = self._mapped.get(name)
        if tokens is None:
            tokens = self._mapped[name] = self._tokens(name)
        if kept["choice"] is None:
            return KeptRows(tokens, None)
        path = self.folder / str(kept["choice"])
        chosen = self._array(path, np.int64)
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= len(tokens):
            raise StateError(f"{path}: is of other rows")
        return KeptRows(tokens, chosen)

    def tidy(self, needed: Iterable[Mapping[str, Any]]) -> None:
        """Delete what no job needs any more; what cannot be deleted costs only space."""
        names = {str(name) for kept in needed for name in kept.values() if name is not None}
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.iterdir()):
            if path.name in names:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if not names and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _tokens(self, name: str) -> TokenisedRows:
        ids, learned, starts = (self._array(self.folder / name / f"{key}.npy", _TYPES[key]) for key in _ARRAYS)
        if not len(starts) or len(ids) != len(learned) or starts[0] != 0 or starts[-1] != len(ids):
            raise StateError(f"{self.folder / name}: the rows are not whole")
        return TokenisedRows(ids, learned, starts[:-1], starts[1:])

    def _array(self, path: Path, kind: Any) -> Any:
        try:
            # the pages are the kernel's own: waiting jobs of one file hold none of them
            array: Ints = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise StateError(f"{path}: the rows cannot be read ({error})") from error
        if array.dtype != kind or array.ndim != 1:
            raise StateError(f"{path}: holds no rows")
        return array

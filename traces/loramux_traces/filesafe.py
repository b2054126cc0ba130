"""Write files that are whole or absent, JSON without NaN, and safe CSV cells.

No spreadsheet runs such a cell as a formula. Bytes are deterministic: keys are sorted, floats are
written as their shortest repr, gzip headers hold no time, and lines end with `\\n`.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from loramux_traces.errors import InvalidInputError, StateError
from loramux_traces.files import MAX_DOCUMENT, open_file, read_text
from loramux_traces.strict_json import JsonError, parse_json

if TYPE_CHECKING:  # functions of tables import it: the GPU suite writes JSON where there is no pandas
    import pandas as pd

#: What a spreadsheet takes for the start of a formula, and the escape itself, so that reading is
#: the exact inverse of writing.
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "'")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]")


def plain(value: Any) -> Any:
    """Return `value` as JSON types.

    Numpy scalars and arrays become those of Python, tuples become lists, paths become text, NaN and
    infinities become None. Raises TypeError for anything else.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray) or type(value).__name__ == "Series":  # of pandas
        return plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return `value` as JSON with sorted keys and never NaN.

    `plain` says what is turned into what.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(plain(value), sort_keys=True, allow_nan=False, indent=indent, separators=separators)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write that appears at `path` whole when the block ends.

    It does not appear at all if the block raises. The temporary file is beside it (one rename,
    never across devices) and is synced before the rename, so that a crash cannot leave an empty
    file under the final name. A symlink at `path` is replaced, never followed. Raises StateError
    when the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise StateError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise StateError(f"{path}: cannot be written ({error.strerror})") from error
        raise


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically.

    Raises StateError when it cannot be written.
    """
    with atomic(path) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises StateError when it cannot be written.
    """
    write_text(path, json_text(value, indent=2) + "\n")


def write_json_gz(path: Path, value: Any) -> None:
    """Write `value` as compact gzipped JSON, atomically.

    The header holds no name or time, so that equal data are equal bytes.
    """
    with atomic(path) as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed:
        packed.write(json_text(value).encode("utf-8", errors="backslashreplace") + b"\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically, without holding the rows in memory."""
    encode = json.JSONEncoder(sort_keys=True, allow_nan=False, separators=(",", ":")).encode
    with atomic(path) as file:
        for row in rows:
            try:  # the fast way first: a million events seldom hold numpy values or NaN
                line = encode(row)
            except (TypeError, ValueError):
                line = json_text(row)
            file.write(line.encode("utf-8", errors="backslashreplace") + b"\n")


def guard_cell(text: str) -> str:
    """Make a text cell safe for a spreadsheet.

    A `'` is put before the start of a formula, and control characters become spaces (so that a row
    is one line).
    """
    text = _CONTROL.sub(" ", text)
    return "'" + text if text.lstrip(" ").startswith(_FORMULA_STARTS) else text


def unguard_cell(text: str) -> str:
    """Return the text that `guard_cell` was given (control characters aside)."""
    return text[1:] if text.startswith("'") else text


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index, atomically.

    Text cells are guarded, missing values are empty, floats are their shortest repr.
    """
    import pandas as pd

    columns: dict[str, Any] = {}
    for position, name in enumerate(table.columns):
        column = table.iloc[:, position]
        if not pd.api.types.is_numeric_dtype(column.dtype):
            column = column.map(_guarded, na_action="ignore")
        columns[guard_cell(str(name))] = column
    text = pd.DataFrame(columns).to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    write_text(path, text)


def _guarded(cell: Any) -> Any:
    """Guard a cell of a column that is not numeric, if the cell is text.

    A number is left as it is. None and NaN do not come here: the caller skips them.
    """
    return guard_cell(cell) if isinstance(cell, str) else cell


def read_csv(path: Path, text_columns: Iterable[str]) -> pd.DataFrame:
    """Read a table that `write_csv` wrote.

    The named columns are read as text (guards taken off, missing values as empty text), the others
    as pandas infers. Only an empty cell is missing: a user called `NA` stays one. Raises StateError
    when the file is not a table.
    """
    import pandas as pd

    # Ask for correctly rounded floats where that is not the default yet (pandas 3.1 made it the
    # default and deprecated the option).
    version = tuple(int(part) for part in pd.__version__.split(".")[:2])
    exact: dict[str, Any] = {} if version >= (3, 1) else {"float_precision": "round_trip"}
    text: dict[Any, Any] = dict.fromkeys(text_columns, str)
    try:
        with open_file(path, MAX_DOCUMENT, "a table of results") as stream:
            table: pd.DataFrame = pd.read_csv(
                stream, dtype=text, keep_default_na=False, na_values=[""], encoding="utf-8", **exact
            )
    except InvalidInputError as error:
        raise StateError(str(error)) from error
    except (ValueError, OSError) as error:  # pandas' ParserError and UnicodeDecodeError are ValueErrors
        raise StateError(f"{path}: not a readable table ({(str(error).splitlines() or ['?'])[0]})") from error
    for name in table.columns:
        if name in text:
            table[name] = table[name].fillna("").map(unguard_cell).astype(str)
    return table


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises StateError when the file is missing or holds anything else.
    """
    if not file.exists():
        raise StateError(f"{file}: is missing")
    try:
        value = parse_json(read_text(file, MAX_DOCUMENT, "a manifest or summary"))
    except InvalidInputError as error:
        raise StateError(str(error)) from error
    except JsonError as error:
        raise StateError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise StateError(f"{file}: holds {type(value).__name__}, not an object")
    return value

"""What a library raises over a user's file is that file's fault, and is said as such."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from loramux_traces.errors import Interrupted, InvalidInputError, LoramuxError, Problem, printable

_OURS = (LoramuxError, MemoryError, torch.OutOfMemoryError, KeyboardInterrupt, SystemExit, GeneratorExit, Interrupted)


@contextmanager
def blame(file: str | Path, what: str = "") -> Iterator[None]:
    """Turn whatever is raised inside into an InvalidInputError about `file`.

    `what` says what is wrong with it, before the library's own words.

    There is no list of exceptions: loaders raise what they like, and some of it is no `Exception`
    (tokenizers' PanicException). What ends the program, and what says that memory ran out, goes
    through as it is.
    """
    try:
        yield
    except _OURS:
        raise
    except BaseException as error:
        if isinstance(error, RuntimeError) and "allocate" in str(error):  # torch's CPU allocator
            raise
        allowed = f"{what} ({reason(error)})" if what else reason(error)
        raise InvalidInputError([Problem(file=str(file), line=0, column="", value="", allowed=allowed)]) from error


def reason(error: BaseException) -> str:
    """Return what an exception says, on one line of at most 300 characters."""
    said = " ".join(str(error).split())
    kind = type(error).__name__
    return printable(said if said and not isinstance(error, KeyError) else f"{kind} {said}".strip(), 300)

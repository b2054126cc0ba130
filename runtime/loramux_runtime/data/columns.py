"""This module knows the columns of a row: those that are read, refused, and left unused.

Nothing with a meaning is dropped without a word: a column that would change what is learned and
that loramux does not know how to follow is refused, and every other one that is not read is counted
by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from loramux_runtime.data.marks import masks_row, weighs_row
from loramux_runtime.data.values import empty
from loramux_traces.problems import Problems

#: Names of what a row may hold, the first that has a value is read.
ALIASES: Final = {
    "instruction": ("instruction", "prompt", "question"),
    "input": ("input", "context"),
    "output": ("output", "completion", "answer", "response"),
    "messages": ("messages", "conversations", "conversation", "contents"),
    "text": ("text",),
}
SYSTEM: Final = ("system", "system_prompt", "system_message", "system_instruction", "systemInstruction")
CHOICES: Final = ("choices", "options")
#: Columns that give a row a meaning.
ROW_COLUMNS: Final = frozenset(
    (*(name for names in ALIASES.values() for name in names), *SYSTEM, *CHOICES, "history", "tools", "functions")
)
#: Names of parts of a data set.
SPLITS: Final = frozenset(("train", "eval", "evaluation", "validation", "valid", "val", "test", "dev"))
_MEDIA: Final = ("image", "images", "video", "videos", "audio", "audios")
_PREFERENCE: Final = (
    *("chosen", "rejected", "chosen_response", "rejected_response", "chosen_messages", "rejected_messages"),
    *("preferred_output", "non_preferred_output", "positive_messages", "negative_messages"),
)
_REFUSED: Final = frozenset((*_PREFERENCE, *_MEDIA))
_MARKS: Final = ("train", "training", "loss")
#: Words for a good and a bad answer, as tables write them.
_VERDICTS: Final = frozenset(
    (
        *("0", "1", "-1", "0.0", "1.0", "-1.0", "true", "false", "t", "f", "yes", "no", "y", "n", "good", "bad"),
        *("desirable", "undesirable", "chosen", "rejected", "positive", "negative", "up", "down", "like", "dislike"),
    )
)
_ANSWERED: Final = (*ALIASES["instruction"], *ALIASES["output"], *ALIASES["messages"])
#: Names of unused columns that are counted one by one, and that are shown.
_MOST_NAMES: Final = 1000
_MOST_SHOWN: Final = 12
_ONE_ANSWER: Final = "loramux learns one answer to each row; give the answer to be learned as messages or completion"


class Unused:
    """Counts the columns that rows have and that nothing reads."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._others = 0

    def add(self, name: str) -> None:
        """Count one value that is not read."""
        if name in self._counts or len(self._counts) < _MOST_NAMES:
            self._counts[name] = self._counts.get(name, 0) + 1
        else:
            self._others += 1

    def rest(self, row: Mapping[Any, Any], used: set[str], prefix: str = "") -> None:
        """Count every column of a row or turn that has a value and is not `used`."""
        for name, value in row.items():
            if name not in used and not empty(value):
                self.add(f"{prefix}{name}")

    def counts(self) -> tuple[tuple[str, int], ...]:
        """Return each name with the number of its values, in the order of the names."""
        others = ((f"(over {_MOST_NAMES} further names)", self._others),) if self._others else ()
        return (*sorted(self._counts.items()), *others)


def unused_text(counts: Iterable[tuple[str, int]]) -> str:
    """Return in words which columns are not used, or nothing."""
    named = [f"{name} ({count})" for name, count in counts]
    if not named:
        return ""
    more = f" and {len(named) - _MOST_SHOWN} more" if len(named) > _MOST_SHOWN else ""
    return f"columns not used: {', '.join(named[:_MOST_SHOWN])}{more}"


def refused_columns(line: int, row: Mapping[Any, Any], problems: Problems) -> set[str]:
    """Note the columns of a row whose meaning cannot be followed.

    Returns the names of those that were looked at and say nothing (a weight of 1).
    """
    for name in () if _REFUSED.isdisjoint(row) else _PREFERENCE:
        if not empty(row.get(name)):
            problems.add(line, name, "", f"belongs to a preference row (DPO): {_ONE_ANSWER}")
    tag = "kto_tag" if _is_verdict(row.get("kto_tag")) else "label" if _is_truth(row.get("label")) else None
    if tag is None and not empty(row.get("prompt")) and not empty(row.get("completion")):
        # TRL's unpaired preferences, their marks written as numbers or words by a table.
        tag = "label" if _is_verdict(row.get("label")) else None
    if tag is not None and (tag == "kto_tag" or any(not empty(row.get(name)) for name in _ANSWERED)):
        problems.add(line, tag, row[tag], f"marks a good or bad answer (KTO): {_ONE_ANSWER}")
    for name in () if _REFUSED.isdisjoint(row) else _MEDIA:
        if not empty(row.get(name)):
            problems.add(line, name, "", "cannot be read: loramux trains on text; leave this column out")
    names = [name for name in row if isinstance(name, str)]
    for name in names:
        if masks_row(name) and not empty(row[name]):
            problems.add(line, name, "", "cannot be followed; mark turns that are not learned by weight: 0 (of a turn)")
    if isinstance(row.get("labels"), list | tuple) and row["labels"]:
        problems.add(line, "labels", "", "cannot be followed: loramux makes tokens and labels itself, from text")
    if not empty(row.get("chat_template_kwargs")):
        problems.add(line, "chat_template_kwargs", "", "is not supported: the chat template gets no settings by row")
    whole: set[str] = set()
    for name in names:
        value = row[name]
        if empty(value) or not (name in _MARKS or weighs_row(name)) or masks_row(name):
            continue
        if name == "loss" and not _is_truth(value) and not _is_verdict(value):
            continue  # a figure that somebody has measured
        if _is_one(value):
            whole.add(name)
        else:
            allowed = "must be 1 or true: rows have no weights (leave out a row that is not to be learned)"
            problems.add(line, name, value, allowed)
    return whole


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))


def _is_verdict(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in _VERDICTS
    return isinstance(value, bool | int | float) and value in (-1, 0, 1)


def _is_one(value: Any) -> bool:
    return (isinstance(value, int | float) and value == 1) or (
        isinstance(value, str) and value.strip().lower() in ("1", "1.0", "true")
    )

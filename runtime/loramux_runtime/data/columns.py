"""This module knows the columns of a row: those that are read, refused, and left unused.

Nothing with a meaning is dropped without a word: a column that would change what is learned and
that loramux does not know how to follow is refused, and every other one that is not read is counted
by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from loramux_traces.problems import Problems
from loramux_traces.strict_json import JsonError, parse_json

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
_MEDIA: Final = ("image", "images", "video", "videos", "audio", "audios")
_PREFERENCE: Final = (
    *("chosen", "rejected", "chosen_response", "rejected_response", "chosen_messages", "rejected_messages"),
    *("preferred_output", "non_preferred_output", "positive_messages", "negative_messages"),
)
_WEIGHTS: Final = ("weight", "sample_weight", "loss_weight", "train", "training")
_MASKS: Final = ("mask", "loss_mask", "completion_mask", "assistant_mask", "assistant_masks", "train_mask")
_ANSWERED: Final = (*ALIASES["instruction"], *ALIASES["output"], *ALIASES["messages"])
#: Names of unused columns that are counted one by one, and that are shown.
_MOST_NAMES: Final = 1000
_MOST_SHOWN: Final = 12
_ONE_ANSWER: Final = "loramux learns one answer to each row; give the answer to be learned as messages or completion"


def empty(value: Any) -> bool:
    """Return whether a column has no value; null and "" are how files say "none"."""
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


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
    for name in _PREFERENCE:
        if not empty(row.get(name)):
            problems.add(line, name, "", f"belongs to a preference row (DPO): {_ONE_ANSWER}")
    tag = next((name for name in ("kto_tag", "label") if _is_truth(row.get(name))), None)
    if tag is None and not empty(row.get("prompt")) and not empty(row.get("completion")):
        # TRL's unpaired preferences, their marks written as numbers by a table.
        tag = "label" if row.get("label") in (0, 1, "0", "1") else None
    if tag is not None and (tag == "kto_tag" or any(not empty(row.get(name)) for name in _ANSWERED)):
        problems.add(line, tag, row[tag], f"marks a good or bad answer (KTO): {_ONE_ANSWER}")
    for name in _MEDIA:
        if not empty(row.get(name)):
            problems.add(line, name, "", "cannot be read: loramux trains on text; leave this column out")
    for name in _MASKS:
        if not empty(row.get(name)):
            problems.add(line, name, "", "cannot be followed; mark turns that are not learned by weight: 0 (of a turn)")
    if isinstance(row.get("labels"), list | tuple) and row["labels"]:
        problems.add(line, "labels", "", "cannot be followed: loramux makes tokens and labels itself, from text")
    if not empty(row.get("chat_template_kwargs")):
        problems.add(line, "chat_template_kwargs", "", "is not supported: the chat template gets no settings by row")
    whole: set[str] = set()
    for name in _WEIGHTS:
        value = row.get(name)
        if value is None:
            continue
        if _is_one(value):
            whole.add(name)
        else:
            allowed = "must be 1 or true: rows have no weights (leave out a row that is not to be learned)"
            problems.add(line, name, value, allowed)
    return whole


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false"))


def _is_one(value: Any) -> bool:
    return (isinstance(value, int | float) and value == 1) or (
        isinstance(value, str) and value in ("1", "1.0", "true", "True")
    )


def unpacked(value: Any) -> Any:
    """Return what a JSON text holds, where a column is one (as data sets often keep lists)."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return parse_json(value)
        except JsonError:
            return value
    return value


def without_nulls(value: Any) -> Any:
    """Return a value without the keys that are null: Parquet gives every key to every row."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(inner) for inner in value]
    return value

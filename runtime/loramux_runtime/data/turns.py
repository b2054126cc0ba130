"""This module reads the turns of a chat, in the forms of OpenAI, ShareGPT, Gemini and trainers.

A turn of an assistant is learned unless it says otherwise (weight: 0, train: false).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from loramux_runtime.data.columns import Unused
from loramux_runtime.data.marks import marks_learning
from loramux_runtime.data.templates import Message
from loramux_runtime.data.tool_calls import CallReader, encodable
from loramux_runtime.data.values import empty, first_given, unpacked
from loramux_traces.problems import Problems

#: Longest text of one field, in characters; a line of a file has the same limit in bytes.
MAX_TEXT: Final = 1 << 20
#: Most turns of one chat.
MAX_TURNS: Final = 1000
#: Who speaks, by the names that OpenAI, ShareGPT and Gemini give them, in any case.
ROLES: Final = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
_WHO: Final = ("role", "from")
_WHAT: Final = ("content", "value", "parts")
_LEARN: Final = ("weight", "train", "training", "loss")
_REASONING: Final = ("reasoning_content", "thinking", "reasoning")
#: What a part of Gemini's may hold beside or instead of text, in both of its spellings.
_NO_TEXT: Final = (
    *("functionCall", "function_call", "functionResponse", "function_response", "inlineData", "inline_data"),
    *("fileData", "file_data", "executableCode", "executable_code", "codeExecutionResult", "code_execution_result"),
)
_TEXT_PARTS: Final = ("text", "input_text", "output_text")
_BARRED: Final = {
    "mask": "may mean either; say weight: 0 or train: false of a turn that is not to be learned",
    "train_detail": "is not supported: a turn is learned as a whole or not at all (train: true or false)",
    "training_detail": "is not supported: a turn is learned as a whole or not at all (training: true or false)",
    "images": "cannot be read: loramux trains on text",
    "image": "cannot be read: loramux trains on text",
    "audio": "cannot be read: loramux trains on text",
    "videos": "cannot be read: loramux trains on text",
}


class Texts:
    """Checks texts of rows; what is wrong with one is noted in `problems`."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems

    def checked(self, line: int, column: str, value: Any, required: str) -> str | None:
        """Return `value` if it is proper text; otherwise note a problem and return None.

        Where text is not `required`, None counts as empty text.
        """
        if value is None and not required:
            return ""
        if value is None:
            allowed = f"is required: text ({required})"
        elif not isinstance(value, str):
            allowed = "must be text"
        elif len(value) > MAX_TEXT:
            allowed = f"may have at most {MAX_TEXT} characters"
        elif required and not value.strip():
            allowed = "must not be empty"
        elif not encodable(value):
            value, allowed = "", "must be Unicode text (it holds half of a surrogate pair)"
        else:
            return value
        self._problems.add(line, column, value, allowed)
        return None

    def joined(self, line: int, column: str, value: Any, unused: Unused) -> Any:
        """Return the text of a list of content parts, and any other value as it is.

        None stands for parts of which one is no text; that is noted.
        """
        if not isinstance(value, list | tuple):
            return value
        texts = []
        for at, part in enumerate(value):
            if isinstance(part, str):
                texts.append(part)
                continue
            where = f"{column}[{at}]"
            kind = part.get("type") if isinstance(part, Mapping) else None
            if not isinstance(part, Mapping) or (kind is not None and kind not in _TEXT_PARTS):
                said = part if kind is None else kind
                self._problems.add(
                    line, where if kind is None else f"{where}.type", said, "must be text: loramux trains on text"
                )
                return None
            held = next((name for name in _NO_TEXT if not empty(part.get(name))), None)
            if held is not None:
                self._problems.add(line, f"{where}.{held}", part[held], "must be text: give calls as tool_calls")
                return None
            text = self.checked(line, f"{where}.text", part.get("text"), "" if part.get("text") == "" else "a part")
            if text is None:
                return None
            if part.get("thought") not in (None, False):
                allowed = "must be true or false, true only in parts of an assistant's turn"
                self._problems.add(line, f"{where}.thought", part["thought"], allowed)
                return None
            unused.rest(part, {"type", "text", "thought"}, "content[].")
            texts.append(text)
        return "".join(texts)


class TurnReader:
    """Turns lists of turns into messages; with `nulls_absent`, keys that are null are missing.

    With `answers_only` turns may say that they are not learned.
    """

    def __init__(
        self, problems: Problems, texts: Texts, unused: Unused, *, nulls_absent: bool, answers_only: bool
    ) -> None:
        self._answers_only = answers_only
        self._problems = problems
        self._texts = texts
        self._unused = unused
        self.calls = CallReader(problems, unused, nulls_absent=nulls_absent)

    def turns(self, line: int, column: str, turns: Any, *, learned: bool = True) -> list[Message] | None:
        """Return the messages of a list of turns, or None if one of them is bad."""
        turns = unpacked(turns)
        if not isinstance(turns, Sequence) or isinstance(turns, str | bytes) or not 0 < len(turns) <= MAX_TURNS:
            allowed = f"must be a list of 1 to {MAX_TURNS} turns, each with role and content, or from and value"
            self._problems.add(line, column, turns, allowed)
            return None
        messages = [self._turn(line, f"{column}[{i}]", turn, learned) for i, turn in enumerate(turns)]
        good = [message for message in messages if message is not None]
        return good if len(good) == len(messages) else None

    def _turn(self, line: int, column: str, turn: Any, learned: bool) -> Message | None:
        who = what = None
        if isinstance(turn, Mapping):
            who, what = first_given(turn, _WHO), first_given(turn, _WHAT)
        if who is None:
            self._problems.add(line, column, turn, "a turn must have role and content, or from and value")
            return None
        said = turn[who]
        role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
        if role is None:
            self._problems.add(line, f"{column}.{who}", said, f"must be one of {', '.join(ROLES)}")
            return None
        before = self._problems.total
        what = what or ("value" if who == "from" else "content")
        used = {who, what, *_LEARN}
        for name in () if _BARRED.keys().isdisjoint(turn) else _BARRED:
            if not empty(turn.get(name)):
                self._problems.add(line, f"{column}.{name}", turn[name], _BARRED[name])
        self._check_other_marks(line, column, turn, role)
        is_learned = self._learned(line, column, turn, role) and learned
        said, thoughts = turn.get(what), None
        if role == "assistant" and isinstance(said, list | tuple):
            said, thoughts = self._without_thoughts(line, f"{column}.{what}", said)
        extra, names = self._extra(line, column, turn, role, used, thoughts)
        content = self._texts.joined(line, f"{column}.{what}", said, self._unused)
        if self._problems.total > before:
            return None
        # System and user turns may be empty, but not missing; an empty answer teaches nothing but
        # to stop. A call of a tool needs no text beside it.
        if "tool_calls" in extra and empty(content):
            content = None
        else:
            required = "an answer" if role == "assistant" else ""
            if content is None:
                what_for = "an answer" if role == "assistant" else "what the turn says"
                required = f"{what_for}; null or nothing stands only beside tool_calls"
            content = self._texts.checked(line, f"{column}.{what}", content, required)
            if content is None:
                return None
        self._unused.rest(turn, used, "turn.")
        return Message(role, content, is_learned, extra, names)

    def _learned(self, line: int, column: str, turn: Mapping[Any, Any], role: str) -> bool:
        """Return whether the turn's own marks let it be learned."""
        marks = {name: turn[name] for name in _LEARN if turn.get(name) is not None}
        if not marks:
            return True
        for name, value in marks.items():
            if not isinstance(value, bool | int | float) or value not in (0, 1):
                allowed = (
                    "must be 0 or 1: a turn is learned or it is not" if name == "weight" else "must be true or false"
                )
                self._problems.add(line, f"{column}.{name}", value, allowed)
                return True
        if len({bool(value) for value in marks.values()}) > 1:
            self._problems.add(line, f"{column}.{next(iter(marks))}", "", f"contradicts {', '.join(list(marks)[1:])}")
        if not self._answers_only and not all(marks.values()):
            name = next(name for name, value in marks.items() if not value)
            self._problems.add(
                line, f"{column}.{name}", marks[name], "needs answers_only: true (it is false: all is learned)"
            )
        if role != "assistant":
            for name, value in marks.items():
                if value:
                    self._unused.add(f"turn.{name} of a {role} turn (only answers are learned)")
        return all(marks.values())

    def _check_other_marks(self, line: int, column: str, turn: Mapping[Any, Any], role: str) -> None:
        """Note keys of an answer that may say whether it is learned, and are not known.

        Left unread, such an answer would be learned although its author has masked it.
        """
        if role != "assistant":
            return
        for name, value in turn.items():
            known = name in _LEARN or name in _BARRED or not isinstance(name, str)
            if not known and marks_learning(name, value):
                allowed = "is not known; say weight: 0 or train: false of a turn that is not to be learned"
                self._problems.add(line, f"{column}.{name}", value, allowed)

    def _without_thoughts(self, line: int, column: str, parts: Sequence[Any]) -> tuple[list[Any], str | None]:
        """Return the parts that are said, and the text of those that Gemini marks as thoughts."""
        thoughts = [part for part in parts if isinstance(part, Mapping) and part.get("thought") is True]
        said = [part for part in parts if not any(part is thought for thought in thoughts)]
        plain = [{**part, "thought": None} for part in thoughts]
        return said, self._texts.joined(line, column, plain, self._unused) if plain else None

    def _extra(
        self,
        line: int,
        column: str,
        turn: Mapping[Any, Any],
        role: str,
        used: set[str],
        thoughts: str | None,
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Return what else a template is told of a turn, and the names that the row has for it."""
        extra: dict[str, Any] = {}
        names: dict[str, str] = {}
        if role == "tool":
            for name in ("name", "tool_call_id"):
                if isinstance(turn.get(name), str) and encodable(turn[name]):
                    extra[name] = turn[name]
                    used.add(name)
        if role != "assistant":
            return extra, names
        reasoning = next((name for name in _REASONING if not empty(turn.get(name))), None)
        if thoughts and reasoning is None:
            extra.update(reasoning_content=thoughts, thinking=thoughts)
            names["reasoning_content"] = "the parts with thought: true"
        elif thoughts and turn[reasoning] != thoughts:
            self._problems.add(
                line, f"{column}.{reasoning}", turn[reasoning], "contradicts the parts that are thoughts"
            )
        if reasoning is not None:
            text = self._texts.checked(line, f"{column}.{reasoning}", turn[reasoning], "reasoning")
            # Templates read it by either name.
            extra.update(reasoning_content=text, thinking=text)
            names["reasoning_content"] = reasoning
            used.update(name for name in _REASONING if turn.get(name) in (None, turn[reasoning]))
        calls = unpacked(turn.get("tool_calls"))
        name = "tool_calls"
        if empty(calls) and not empty(turn.get("function_call")):
            name, calls = "function_call", [unpacked(turn["function_call"])]
        if not empty(calls):
            used.add(name)
            found = self.calls.calls(line, f"{column}.{name}", calls)
            if found is not None:
                extra["tool_calls"] = found
                names["tool_calls"] = name
        return extra, names

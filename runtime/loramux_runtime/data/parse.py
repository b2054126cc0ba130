"""This module turns a row of a file into an instruction, a completion, a chat or a text.

What is wrong with a row is put into words, and what is in it but not read is counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any, Final

from loramux_runtime.data.columns import ALIASES, CHOICES, SYSTEM, Unused, refused_columns
from loramux_runtime.data.config import DataConfig
from loramux_runtime.data.records import Chat, Completion, Instruction, Record, Text
from loramux_runtime.data.templates import Message
from loramux_runtime.data.turns import MAX_TURNS, Texts, TurnReader
from loramux_runtime.data.values import empty, first_given, unpacked
from loramux_traces.problems import Problems

#: What a row must have to be of a format, in the order in which `auto` tries the formats.
_NEEDED: Final = {"chat": ("messages",), "instruction": ("instruction", "output"), "text": ("text",)}
#: Columns beside prompt and completion that make them an instruction and its answer.
_ANSWERING: Final = tuple(name for name in ALIASES["output"] if name != "completion")
_ASKING: Final = ("instruction", "question", *ALIASES["input"], *SYSTEM, "history", *CHOICES)
#: How a list of turns begins as JSON, or as Python writes it into tables.
_TURNS_AS_TEXT: Final = re.compile(r"""\s*\[\s*\{\s*["'](?:role|from|content|value|parts)["']\s*:""")


class RecordReader:
    """Turns rows into records of one format; what cannot be turned is noted in `problems`.

    `nulls_absent`: keys inside of tools that are null are taken as missing (Parquet).
    """

    def __init__(self, config: DataConfig, problems: Problems, *, nulls_absent: bool = False) -> None:
        self._is_guessed = config.format == "auto"
        self.format: str = config.format
        """Format of the rows: a `DataFormat`; `auto` until a row has shown which."""
        self.unlearned = 0
        """Number of chats that were left out because they let none of their answers be learned."""
        self.unused = Unused()
        self._problems = problems
        self._texts = Texts(problems)
        self._turns = TurnReader(
            problems, self._texts, self.unused, nulls_absent=nulls_absent, answers_only=config.answers_only
        )
        given = {
            "instruction": config.instruction_field,
            "input": config.input_field,
            "output": config.output_field,
            "messages": config.messages_field,
            "text": config.text_field,
        }
        self._names: dict[str, tuple[str, ...]] = {
            field: ALIASES[field] if name is None else (name,) for field, name in given.items()
        }
        self._taken = {name for names in self._names.values() for name in names}
        # Who names the fields, a template or the chat template wants it around these two as well.
        self._named = any(given[field] is not None for field in ("instruction", "input", "output"))
        self._as_it_stands = not (self._named or config.template is not None or config.use_chat_template)

    def read(self, line: int, row: Any) -> Record | None:
        """Return the record of one row, or None if the row is bad or has nothing to learn."""
        if not isinstance(row, Mapping):
            self._problems.add(line, "", row, "a row must be a mapping of field names to values")
            return None
        before = self._problems.total
        used = refused_columns(line, row, self._problems)
        if self._problems.total > before:
            return None
        if self.format == "auto":
            self.format = self._recognise(row)
        record: Record | None = None
        if self.format == "chat":
            record = self._chat(line, row, used)
        elif self.format == "text":
            text = self._text(line, row, "text", used)
            record = None if text is None else Text(text)
        elif self.format == "completion":
            record = self._completion(line, row, used)
        elif self.format == "instruction":
            record = self._instruction(line, row, used)
        else:
            known = "; or ".join(" and ".join("|".join(self._names[f]) for f in needed) for needed in _NEEDED.values())
            self._problems.add(line, "", ", ".join(map(str, list(row)[:8])), f"its fields must hold {known}")
        self.unused.rest(row, used)
        return record

    def _recognise(self, row: Mapping[Any, Any]) -> str:
        if any(not empty(row.get(name)) for name in self._names["messages"]):
            return "chat"
        if not self._named and _list_of_turns(row.get("prompt")) and not empty(row.get("completion")):
            return "chat"
        if self._as_it_stands and row.get("prompt") is not None and row.get("completion") is not None:
            others = (*_ASKING, *(_ANSWERING if empty(row["completion"]) else ()))
            if isinstance(row["prompt"], str) and all(empty(row.get(name)) for name in others):
                return "completion"
        # An empty list of turns is a chat's only where nothing else is there.
        for format in ("instruction", "text", "chat"):
            if all(any(row.get(name) is not None for name in self._names[field]) for field in _NEEDED[format]):
                return format
        return "auto"

    def _name(self, row: Mapping[Any, Any], field: str) -> str:
        names = self._names[field]
        return first_given(row, names) or names[0]

    def _text(
        self, line: int, row: Mapping[Any, Any], field: str, used: set[str], *, required: bool = True
    ) -> str | None:
        name = self._name(row, field)
        used.add(name)
        return self._texts.checked(line, name, row.get(name), "|".join(self._names[field]) if required else "")

    def _completion(self, line: int, row: Mapping[Any, Any], used: set[str]) -> Completion | None:
        for name in _ASKING:
            if not empty(row.get(name)):
                allowed = (
                    "prompt and completion are learned as they stand: put it into prompt, or say format: instruction"
                )
                self._problems.add(line, name, row[name], allowed)
                return None
        used.update(("prompt", "completion"))
        if self._is_guessed:
            for name in ("prompt", "completion"):
                if isinstance(row.get(name), str) and _TURNS_AS_TEXT.match(row[name]):
                    allowed = (
                        "looks like a list of turns: give prompt and completion both as lists of turns (or their JSON "
                        "text), or say format: completion to learn it as it stands"
                    )
                    self._problems.add(line, name, row[name], allowed)
                    return None
        # An empty prompt is a text that is learned from its beginning.
        empty_prompt = row.get("prompt") == ""
        prompt = "" if empty_prompt else self._texts.checked(line, "prompt", row.get("prompt"), "prompt")
        completion = self._texts.checked(line, "completion", row.get("completion"), "completion")
        return None if prompt is None or completion is None else Completion(prompt=prompt, completion=completion)

    def _instruction(self, line: int, row: Mapping[Any, Any], used: set[str]) -> Instruction | None:
        before = self._problems.total
        asked = self._text(line, row, "instruction", used)
        extra = self._text(line, row, "input", used, required=False)
        answer = self._text(line, row, "output", used)
        system = self._system(line, row, used)
        history = self._history(line, row.get("history"))
        choices = self._choices(line, row, used)
        used.add("history")
        for name in ("tools", "functions"):
            if not empty(row.get(name)):
                self._problems.add(line, name, "", "is for chat rows: give messages with the tools")
        if asked is None or extra is None or answer is None or self._problems.total > before:
            return None
        asked = f"{asked}\n\n{choices}" if choices else asked
        return Instruction(instruction=asked, input=extra, output=answer, system=system, history=history)

    def _system(self, line: int, row: Mapping[Any, Any], used: set[str]) -> str:
        name = next((name for name in SYSTEM if not empty(row.get(name)) and name not in self._taken), None)
        if name is None:
            return ""
        used.add(name)
        value = row[name]
        if isinstance(value, Mapping) and "parts" in value:
            value = value["parts"]
        value = self._texts.joined(line, name, value, self.unused)
        return self._texts.checked(line, name, value, "") or ""

    def _history(self, line: int, value: Any) -> tuple[tuple[str, str], ...]:
        """Return earlier questions with their answers."""
        pairs = unpacked(value)
        if empty(pairs):
            return ()
        allowed = f"must be a list of at most {MAX_TURNS // 2} [question, answer] pairs of text"
        if not isinstance(pairs, list | tuple) or len(pairs) > MAX_TURNS // 2:
            self._problems.add(line, "history", value, allowed)
            return ()
        found = []
        for at, pair in enumerate(pairs):
            where = f"history[{at}]"
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                self._problems.add(line, where, pair, allowed)
                return ()
            asked = self._texts.checked(line, f"{where}[0]", pair[0], "a question")
            answer = self._texts.checked(line, f"{where}[1]", pair[1], "an answer")
            if asked is None or answer is None:
                return ()
            found.append((asked, answer))
        return tuple(found)

    def _choices(self, line: int, row: Mapping[Any, Any], used: set[str]) -> str:
        """Return the choices of a multiple-choice row as lines `A. first`, `B. second`."""
        name = next((name for name in CHOICES if not empty(row.get(name)) and name not in self._taken), None)
        if name is None:
            return ""
        used.add(name)
        value = unpacked(row[name])
        letters: list[Any]
        if isinstance(value, str):  # the choices are written out already
            return self._texts.checked(line, name, value, "") or ""
        if isinstance(value, Mapping) and isinstance(value.get("text"), list | tuple):
            texts = list(value["text"])
            labels = value.get("label")
            letters = list(labels) if isinstance(labels, list | tuple) else list(ascii_uppercase)
        elif isinstance(value, Mapping):
            given = {letter: text for letter, text in value.items() if text is not None}
            letters, texts = list(given), list(given.values())
        elif isinstance(value, list | tuple):
            letters, texts = list(ascii_uppercase), list(value)
        else:
            letters, texts = [], [value]
        while texts and texts[-1] is None:  # a table gives every row as many as the longest has
            texts.pop()
        while len(letters) > len(texts) and letters[-1] is None:
            letters.pop()
        good = all(isinstance(text, str | int | float) and not isinstance(text, bool) for text in (*texts, *letters))
        if len(letters) < len(texts) or not good:
            self._problems.add(
                line, name, row[name], f"must be a list of up to {len(ascii_uppercase)} texts (null: at its end)"
            )
            return ""
        lines = [f"{letter}. {text}" for letter, text in zip(letters, texts, strict=False)]
        return self._texts.checked(line, name, "\n".join(lines), "") or ""

    def _chat(self, line: int, row: Mapping[Any, Any], used: set[str]) -> Chat | None:
        column = self._name(row, "messages")
        before = self._problems.total
        if empty(row.get(column)) and _list_of_turns(row.get("prompt")) and not empty(row.get("completion")):
            used.update(("prompt", "completion"))
            asked = self._turns.turns(line, "prompt", row["prompt"], learned=False)
            answer = row["completion"]
            if isinstance(answer, str) and not _list_of_turns(answer) and not _TURNS_AS_TEXT.match(answer):
                answer = [{"role": "assistant", "content": answer}]
            answered = self._turns.turns(line, "completion", answer)
            messages = None if asked is None or answered is None else [*asked, *answered]
            column = "completion"
        else:
            used.add(column)
            messages = self._turns.turns(line, column, row.get(column))
        system = self._system(line, row, used)
        tools = self._tools(line, row, used)
        if not empty(row.get("documents")):
            self._problems.add(line, "documents", "", "is not supported: put the documents into a turn")
        if messages is None or self._problems.total > before:
            return None
        if system:
            own = [message.content for message in messages if message.role in ("system", "developer")]
            if not own:
                messages.insert(0, Message("system", system))
            elif own != [system]:
                self._problems.add(line, column, "", "has a system turn, and the row another system text beside it")
                return None
        return self._learned_part(line, column, messages, tools)

    def _learned_part(
        self, line: int, column: str, messages: list[Message], tools: tuple[Mapping[str, Any], ...] | None
    ) -> Chat | None:
        """Return the chat up to its last learned answer: turns after it would only be read."""
        answers = [at for at, message in enumerate(messages) if message.role == "assistant"]
        if not answers:
            self._problems.add(line, column, "", "needs at least one assistant turn")
            return None
        learned = [at for at in answers if messages[at].learned]
        if not learned:
            self.unlearned += 1
            return None
        return Chat(tuple(messages[: learned[-1] + 1]), tools)

    def _tools(self, line: int, row: Mapping[Any, Any], used: set[str]) -> tuple[Mapping[str, Any], ...] | None:
        name = next((name for name in ("tools", "functions") if not empty(unpacked(row.get(name)))), None)
        used.update(name for name in ("tools", "functions") if empty(unpacked(row.get(name))))
        if name is None:
            return None
        used.add(name)
        return self._turns.calls.tools(line, name, row[name])


def _list_of_turns(value: Any) -> bool:
    if isinstance(value, str):
        value = unpacked(value) if _TURNS_AS_TEXT.match(value) else None
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(turn, Mapping) for turn in value)

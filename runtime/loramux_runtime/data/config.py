"""This module holds what a jobs file says about one job's data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from loramux_runtime.data.templates import check_template
from loramux_traces.job_types import ReadNumber
from loramux_traces.limits import MAX_TOKENS

DataFormat = Literal["auto", "instruction", "completion", "chat", "text"]
FileFormat = Literal["auto", "jsonl", "json", "csv", "parquet"]
DEFAULT_MAX_TOKENS: Final = 512
#: Longest template, in characters: every row is written with it.
MAX_TEMPLATE: Final = 1 << 16
#: YAML's `true` is not the number 1, and 0.5 is not a number of rows.
Count = Annotated[int, Field(strict=True, ge=1)]
Switch = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(strict=True, min_length=1, max_length=256)]


class DataConfig(BaseModel):
    """Says where a job's rows are and how they become tokens.

    Raises pydantic's ValidationError for unknown keys, wrong types and settings that contradict
    each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    """File of training rows: .jsonl, .ndjson, .json, .csv (each also .gz) or .parquet."""
    file_format: FileFormat = "auto"
    """Format of the file of `path`, where its name does not say or says another.

    It is that of `eval_path` too, unless the ending of that name says otherwise.
    """
    format: DataFormat = "auto"
    """Format of its rows; auto takes it from the fields of the first row.

    A completion row is a text (prompt) and how it goes on (completion), with no template around it.
    """
    instruction_field: Name | None = None
    """None: the first of instruction, prompt, question."""
    input_field: Name | None = None
    """None: the first of input, context; rows may lack it."""
    output_field: Name | None = None
    """None: the first of output, completion, answer, response."""
    messages_field: Name | None = None
    """None: the first of messages, conversations, contents (a list of {role, content} turns)."""
    text_field: Name | None = None
    """None: the field named text."""
    template: Annotated[str, Field(strict=True, max_length=MAX_TEMPLATE)] | None = None
    """Prompt and answer of an instruction row; None: Alpaca's.

    It has {instruction}, {input} and, once, {output}. Rows of prompt and completion get one only
    where it, `format: instruction` or a field's name is given.
    """
    use_chat_template: Switch | None = None
    """Whether rows are written with the tokenizer's chat template.

    None: chat rows are where it has one, instruction rows are not.
    """
    max_tokens: Annotated[int, Field(strict=True, ge=2, le=MAX_TOKENS)] = DEFAULT_MAX_TOKENS
    """Tokens of a row; longer rows are cut at the end and counted."""
    answers_only: Switch = True
    """Learn only answers (of a chat: every assistant turn that has no weight of 0).

    False: all of each row. Text rows are learned whole.
    """
    eval_path: Path | None = None
    """File of held-out rows of the same `format`."""
    eval_rows: Count | None = None
    """Rows of `path` to hold out, drawn by the job's seed."""
    eval_fraction: Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False), ReadNumber] | None = None
    """Share of the rows of `path` to hold out (at least one)."""
    shuffle: Switch = True
    """A new order every epoch; false: the order of the file."""
    limit: Count | None = None
    """Number of rows to read from the start of each file."""

    @field_validator("template")
    @classmethod
    def _template_is_plain(cls, template: str | None) -> str | None:
        if template is not None:
            check_template(template)
        return template

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        held_out = {"eval_path": self.eval_path, "eval_rows": self.eval_rows, "eval_fraction": self.eval_fraction}
        given = [name for name, value in held_out.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"give only one of {', '.join(given)}")
        if self.template is not None and self.use_chat_template:
            raise ValueError("give template or use_chat_template, not both")
        if self.template is not None and self.format in ("chat", "text", "completion"):
            raise ValueError("template is for instruction rows only")
        return self

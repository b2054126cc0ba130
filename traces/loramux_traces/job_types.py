"""Define the types of a job's values, for the rows of a trace and for the jobs of a jobs.yaml.

Both files have one set of types, so that a job which one of them takes can always be put in the
terms of the other. The bounds are in `limits`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from loramux_traces import limits
from loramux_traces.wholes import WrittenInt

# Free text that is only shown: no control or direction-changing characters (it reaches terminals
# and spreadsheets).
_HIDDEN = r"\p{Cc}\u{2028}\u{2029}\u{202A}-\u{202E}\u{2066}-\u{2069}"
_JOB_ID = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
_LABEL = r"^[A-Za-z0-9_][A-Za-z0-9_.:/+-]{0,127}$"
_MODEL = r"^[A-Za-z0-9_./][A-Za-z0-9_.:/+-]{0,254}$"
_TEXT = rf"^([^\s{_HIDDEN}]([^{_HIDDEN}]*[^\s{_HIDDEN}])?)?$"
_LENGTH_SHAPE = r"^[a-z][a-z0-9_-]{0,31}$"
PATTERN_SAID: Final = {
    _JOB_ID: "must be up to 64 letters, digits, _ . and -, beginning with a letter or digit",
    _LABEL: "must be up to 128 letters, digits, _ . : / + and -, beginning with a letter, digit or _",
    _MODEL: "must be a name or path of up to 255 letters, digits, _ . : / + and -",
    _TEXT: "must be one line of text without hidden characters",
    _LENGTH_SHAPE: "must be up to 32 small letters, digits, _ and -, beginning with a letter",
}
"""What each of these patterns allows, in words."""
JobId = Annotated[str, StringConstraints(strip_whitespace=True, pattern=_JOB_ID)]
Label = Annotated[str, StringConstraints(strip_whitespace=True, pattern=_LABEL)]
# A name, or a path: absolute, or beginning with a name, ./ or ../.
Model = Annotated[str, StringConstraints(strip_whitespace=True, pattern=_MODEL)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, max_length=limits.MAX_NAME, pattern=_TEXT)]
LengthShape = Annotated[str, StringConstraints(strip_whitespace=True, pattern=_LENGTH_SHAPE)]
Method = Literal["lora", "mixlora", "mola", "loramoe", "dynmole"]
Dtype = Literal["bf16", "fp16", "fp32"]
Targets = Literal["all-linear", "attention", "mlp", "qv"]

Submit = Annotated[float, Field(ge=0, le=limits.MAX_SECONDS, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=limits.MIN_SECONDS, le=limits.MAX_SECONDS, allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=limits.SMALLEST, le=limits.LARGEST, allow_inf_nan=False)]
LearningRate = Annotated[float, Field(ge=limits.MIN_LR, le=limits.MAX_LR, allow_inf_nan=False)]
Dropout = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
MeanTokens = Annotated[float, Field(ge=1, le=limits.MAX_TOKENS, allow_inf_nan=False)]
Epochs = Annotated[float, Field(ge=limits.SMALLEST, le=limits.MAX_EPOCHS, allow_inf_nan=False)]
# A trace may have a part of a step, where it stands for a duration; a job that trains may not.
Steps = Annotated[float, Field(ge=limits.SMALLEST, le=limits.MAX_STEPS, allow_inf_nan=False)]
WholeSteps = Annotated[int, Field(ge=1, le=limits.MAX_STEPS)]
Samples = Annotated[int, Field(ge=1, le=limits.MAX_SAMPLES)]
Rows = Annotated[int, Field(ge=1, le=limits.MAX_BATCH)]
Rank = Annotated[int, Field(ge=1, le=limits.MAX_RANK)]
Experts = Annotated[int, Field(ge=1, le=limits.MAX_EXPERTS)]
Priority = Annotated[int, Field(ge=-limits.MAX_PRIORITY, le=limits.MAX_PRIORITY)]
Seed = Annotated[int, Field(ge=0, le=limits.MAX_SEED)]
Gpus = Annotated[int, Field(ge=1, le=limits.MAX_GPUS)]
Bytes = Annotated[int, Field(ge=1, le=2**53)]


def plain_number(value: Any) -> Any:
    """Return a value where a number is wanted, as every reader takes it.

    Raises PydanticCustomError for true and false, which Python takes for 1 and 0, and for Python's
    own notation `1_000`, which no other program writes.
    """
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        raise PydanticCustomError("number_type", "must be a number")
    return value


def plain_text(value: Any) -> Any:
    """Return a value where a name is wanted: a whole number there is the text that was written."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 256:
        return value.written if isinstance(value, WrittenInt) else str(value)
    return value


def without_blanks(value: Any) -> Any:
    """Return a value without the blanks around it, where it is text."""
    return value.strip() if isinstance(value, str) else value


def is_absent(value: Any) -> bool:
    """Return whether a value says nothing, so that the field has its default: null or a blank."""
    return value is None or (isinstance(value, str) and not value.strip())


#: For fields that are read from YAML or JSON as they stand (rows of a trace go a faster way).
ReadNumber = BeforeValidator(plain_number)
ReadText = BeforeValidator(plain_text)


def broken_rule(column: str, allowed: str) -> PydanticCustomError:
    """Return the error for a broken rule over several columns.

    `column` is where the reader points, with dots where it lies deeper.
    """
    return PydanticCustomError("job_rule", "{allowed}", {"column": column, "allowed": allowed})

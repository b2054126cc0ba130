"""A profile record holds what was measured of one model on one device.

It lies in `profiles/data/<device>/<model>.json`. A record carries its own SHA-256 over everything
else in it, so that one that was cut off, edited or damaged is refused rather than believed. It
holds raw samples; the `fit` in it can be made again from them (`loramux fit`).
"""

from __future__ import annotations

import hashlib
import json
import statistics
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from loramux_profiles.datafiles import problem, read_json
from loramux_profiles.file_part import FilePart, Listed
from loramux_profiles.fit_section import FitSection
from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_point import StepPoint
from loramux_traces.errors import InvalidInputError, UsageError
from loramux_traces.file_model import validate
from loramux_traces.filesafe import json_text, write_text
from loramux_traces.job_types import ReadNumber

SCHEMA_VERSION: Final = 1
MAX_POINTS: Final = 20_000
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Text = Annotated[str, StringConstraints(max_length=300)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class Device(FilePart):
    """Describes the device that was measured on."""

    name: Name
    """Name of the device profile beside the record: cpu, h100-80g, ..."""
    kind: Literal["cpu", "cuda"]
    description: Text
    """Name by which the processor or card calls itself."""
    driver: Text = ""
    memory_bytes: Count
    threads: Annotated[int, Field(ge=1, le=4096)]


class Model(FilePart):
    """Says which base model it is: a shape, written out, and the type of its weights."""

    name: Text
    hidden: Annotated[int, Field(ge=1, le=1 << 20)]
    ffn: Annotated[int, Field(ge=1, le=1 << 22)]
    layers: Annotated[int, Field(ge=1, le=10_000)]
    heads: Annotated[int, Field(ge=1, le=10_000)]
    kv_heads: Annotated[int, Field(ge=1, le=10_000)]
    head_dim: Annotated[int, Field(ge=1, le=1 << 16)]
    vocab: Annotated[int, Field(ge=1, le=1 << 26)]
    tied_embeddings: bool = False
    qkv_bias: bool = False
    gated: bool = True
    qk_norm: bool = False
    post_norms: bool = False
    fused_qkv: bool = False
    dtype: Literal["fp32", "bf16"]

    @cached_property
    def shape(self) -> ModelShape:
        """Return the shape in the form that the cost models take."""
        return ModelShape(**self.model_dump(exclude={"dtype"}))

    @classmethod
    def of(cls, shape: ModelShape, dtype: str) -> Model:
        """Make the section from a shape and a type of weights."""
        fields = {name: getattr(shape, name) for name in cls.model_fields if name != "dtype"}
        return cls.model_validate({**fields, "dtype": dtype})


class Memory(FilePart):
    """Holds the peak of a step in bytes, or says that there was not enough memory.

    A `censored` step needs more than `known` bytes in all.
    """

    dynamic: Annotated[int, Field(ge=1, le=1 << 53)] | None = None
    state: Count | None = None
    total: Annotated[int, Field(ge=1, le=1 << 53)] | None = None
    allocated: Annotated[int, Field(ge=1, le=1 << 53)] | None = None
    reserved: Annotated[int, Field(ge=1, le=1 << 53)] | None = None
    context: Count | None = None
    censored: bool = False
    known: Count | None = None

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Memory:
        if self.censored and (self.known is None or self.dynamic is not None):
            raise ValueError("a censored point says what is known and has no peak")
        if not self.censored and (self.dynamic is None or self.total is None or self.known is not None):
            raise ValueError("a measured point has its dynamic and total bytes")
        return self


class Time(FilePart):
    """Holds the seconds of the repeats, in the order they were taken in."""

    samples: Annotated[Listed[Seconds], Field(min_length=1, max_length=1000)]
    median: Seconds
    spread: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """(largest - smallest) / median."""
    anchor: Seconds | None = None
    """Seconds of a reference step that was timed in turn with it.

    They tell how fast the machine was then.
    """


class Point(FilePart):
    """Holds one fused step and what was seen of it."""

    step: dict[str, Any]
    memory: Memory
    time: Time | None = None
    active_experts: Listed[Annotated[float, Field(ge=0, allow_inf_nan=False)] | None] | None = None
    """Mean experts per token by job, where the routing decides it (DynMoLE)."""

    @field_validator("step")
    @classmethod
    def _is_a_step(cls, step: dict[str, Any]) -> dict[str, Any]:
        try:
            return StepPoint.from_dict(step).to_dict()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no step: {str(error)[:100]}") from error

    @cached_property
    def point(self) -> StepPoint:
        """Return the step as a `StepPoint`."""
        return StepPoint.from_dict(self.step)


class Transfers(FilePart):
    """Holds the seconds that moving things takes: `fixed_s` plus bytes times `byte_s`.

    Each was measured at several sizes.
    """

    class Line(FilePart):
        """Holds the fitted line and the samples of one kind of transfer."""

        fixed_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
        byte_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
        sizes: Listed[Count]
        samples: Listed[Listed[Seconds]]
        """Seconds of the repeats, by size."""

    join: Line
    """A new adapter with its optimizer, by bytes of state."""
    adapter_load: Line
    """An adapter from its file."""
    pause: Line
    """State to the host; on a CPU this is a copy within main memory."""
    resume: Line
    base_load_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    base_bytes: Count


class ProfileRecord(FilePart):
    """Holds a profile record as the module describes it."""

    schema_version: Annotated[Literal[1], ReadNumber]
    kind: Literal["profile"]
    device: Device
    model: Model
    exact: bool
    """Whether jobs had every kernel to themselves (the runtime's exact mode)."""
    clock: Literal["process", "wall"]
    """Clock of the times: CPU seconds of the process, or seconds on the wall."""
    versions: dict[Name, Text]
    commit: Text
    """Commit of the code that was measured."""
    date: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\d$")]
    seed: int = 0
    points: Annotated[Listed[Point], Field(min_length=1, max_length=MAX_POINTS)]
    transfers: Transfers | None = None
    fit: FitSection | None = None

    @property
    def timed(self) -> list[Point]:
        """Return the points that have times."""
        return [p for p in self.points if p.time is not None]

    @cached_property
    def anchor_s(self) -> float | None:
        """Return the median seconds of the reference step.

        It is the speed that `even_s` brings every time to.
        """
        anchors = [p.time.anchor for p in self.timed if p.time is not None and p.time.anchor is not None]
        return statistics.median(anchors) if anchors else None

    def even_s(self, time: Time) -> float:
        """Return a median at the speed that the machine had in the middle of the run."""
        return (
            time.median if time.anchor is None or self.anchor_s is None else time.median * self.anchor_s / time.anchor
        )

    @property
    def peaks(self) -> list[Point]:
        """Return the points that have a peak."""
        return [p for p in self.points if p.memory.dynamic is not None]


def digest(document: dict[str, Any]) -> str:
    """Return the SHA-256 of a record's canonical JSON, with its own digest left out."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json_text(content).encode()).hexdigest()


def read_record(path: Path | str) -> ProfileRecord:
    """Return a record from its file.

    Raises InvalidInputError, in one line where the file was cut off, edited or damaged.
    """
    document = read_json(path)
    given = document.pop("sha256", None)
    if document.get("kind") != "profile":
        raise InvalidInputError([problem(path, "kind", document.get("kind"), "not a profile record (kind: profile)")])
    if given is None or digest(document) != given:
        what = "has no sha256" if given is None else "was edited or damaged: its content does not have its sha256"
        raise InvalidInputError([problem(path, "sha256", None, f"the profile {what}")])
    return validate(ProfileRecord, path, document)


def write_record(path: Path, record: ProfileRecord) -> None:
    """Write a record whole or not at all, one point a line.

    Raises StateError when it cannot be written.
    """
    # Only what was set is written, so that a point is one line and a person can read the file
    document = json.loads(record.model_dump_json(exclude_defaults=True, exclude_none=True))
    document = {**document, "schema_version": SCHEMA_VERSION, "kind": "profile"}
    points = document.pop("points")
    head = {"sha256": digest({**document, "points": points}), **document}
    lines = [f" {json.dumps(key)}: {json_text(head[key])}" for key in head]
    rows = ",\n".join("  " + json_text(point) for point in points)
    write_text(path, "{\n" + ",\n".join(lines) + ',\n "points": [\n' + rows + "\n ]\n}\n")


def check_matches(
    record: ProfileRecord, device: str, shape: ModelShape, dtype: str, *, allow: bool = False, kind: str | None = None
) -> None:
    """Refuse a record of another device, model or precision unless `allow`.

    Raises UsageError that names both. Devices are compared by name, and by kind where given; models
    by their dimensions, because a model's name does not matter.
    """
    if allow:
        return
    if record.device.name != device or (kind is not None and record.device.kind != kind):
        raise UsageError(
            f"the profile is of device {record.device.name!r} ({record.device.description}), not of {device!r}; "
            "--allow-other uses it all the same"
        )
    if record.model.dtype != dtype or Model.of(shape, dtype).model_dump(exclude={"name"}) != record.model.model_dump(
        exclude={"name"}
    ):
        raise UsageError(
            f"the profile is of {record.model.name} in {record.model.dtype}, not of {shape.name} in {dtype}; "
            "--allow-other uses it all the same"
        )

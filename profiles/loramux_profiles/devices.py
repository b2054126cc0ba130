"""A device profile holds every constant of the memory and time models for one device type.

Each constant has its unit, origin and source. A profile is a JSON file; the shipped ones are
`profiles/data/<device>/device.json`. Measuring replaces `assumed` by `measured` or `fitted` in the
same file, and nothing else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    Field,
    SkipValidation,
    StringConstraints,
    field_validator,
    model_validator,
)

from loramux_profiles.curves import SpeedupCurve, curve_through
from loramux_profiles.datafiles import data_dir, looks_like_path, read_json, unknown
from loramux_profiles.file_part import FilePart, Listed
from loramux_profiles.fitted import FittedModel, fitted_model
from loramux_traces.errors import UsageError
from loramux_traces.file_model import validate
from loramux_traces.files import read_file
from loramux_traces.job_types import ReadNumber

Origin = Literal["assumed", "fitted", "measured"]
SCHEMA_VERSION: Final = 1
MAX_DEVICES: Final = 100_000

#: Constant -> (unit, smallest, largest, meaning). Validation and documentation both read this one
#: table.
PARAMETERS: Final[dict[str, tuple[str, float, float, str]]] = {
    "memory_bytes": ("B", 1 << 20, 1 << 50, "nominal memory"),
    "reserved_bytes": ("B", 0, 1 << 45, "memory the driver keeps, and what fragmentation loses"),
    "context_bytes": ("B", 0, 1 << 40, "context and libraries of one process"),
    "peak_flops": ("FLOP/s", 1e9, 1e18, "dense bf16 matrix rate of the data sheet"),
    "memory_bandwidth": ("B/s", 1e8, 1e15, "device memory bandwidth of the data sheet"),
    "host_bandwidth": ("B/s", 1e6, 1e14, "host to device copies"),
    "disk_bandwidth": ("B/s", 1e6, 1e14, "reading a base model into the device"),
    "eta_g": ("1", 1e-4, 1, "share of peak_flops that the frozen matrices reach"),
    "eta_a": ("1", 1e-4, 1, "share of peak_flops that attention reaches"),
    "eta_l": ("1", 1e-4, 1, "share of peak_flops that the thin adapter matrices reach"),
    "activation_passes": ("1", 0, 1000, "times the saved activations cross the memory bus in a step"),
    "weight_passes": ("1", 0, 10_000, "times the base weights cross the memory bus in a step"),
    "c0": ("s", 0, 100, "time of an empty step"),
    "c1": ("s/kernel", 0, 1, "launch time of one kernel"),
    "c2": ("s/parameter", 0, 1e-3, "optimizer step, per trainable parameter"),
    "join_s": ("s", 0, 3600, "making room for a job's adapter, data and optimizer, beside the copies"),
    "activation_scale": ("1", 0.1, 10, "factor on the analytic activation bytes of a layer"),
    "b0_bytes": ("B", 0, 1 << 40, "peak memory of a step that no token causes (workspaces)"),
    "row_bytes": ("B/row", 0, 1 << 30, "memory of a step per sequence"),
    "loss_chunk_tokens": ("token", 1, 1 << 20, "tokens whose logits are held at once"),
    "memory_margin": ("1", 0, 10, "upper bound: what the dynamic part may exceed its expected value by"),
}
_OPTIONAL: Final[dict[str, tuple[str, float, float, str]]] = {
    "base_weight_bytes": (
        "B",
        0.25,
        4,
        "bytes per weight of the layers' matrices, where the system quantises every base",
    ),
}
_EVERY: Final = {**PARAMETERS, **_OPTIONAL}


class Parameter(FilePart):
    """Holds one constant and where it comes from."""

    value: Annotated[float, Field(allow_inf_nan=False)]
    unit: str
    origin: Origin
    note: Annotated[str, StringConstraints(min_length=1, max_length=1000)]
    """Source of the value, or how it was chosen."""


_Rate = Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], float], Field(strict=False)]


class ParallelCurve(FilePart):
    """Holds the aggregate rate of k processes with a base copy each.

    It has points (k, phi), is linear between them, and constant beyond the last.
    """

    points: Annotated[Listed[_Rate], Field(min_length=1)]
    origin: Origin
    note: Annotated[str, StringConstraints(min_length=1, max_length=1000)]

    @field_validator("points")
    @classmethod
    def _in_order(cls, points: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
        if any(not 0 < phi <= k for k, phi in points):
            raise ValueError("phi must be above 0 and at most k")
        if any(a[0] >= b[0] for a, b in pairwise(points)):
            raise ValueError("k must grow from point to point")
        return points


class DeviceProfile(FilePart):
    """Holds the constants of one device type.

    Attributes such as `eta_g` give the value, and `parameters` the whole record.
    """

    schema_version: Annotated[Literal[1], ReadNumber]
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    description: str = ""
    parameters: dict[str, Parameter]
    parallel: ParallelCurve
    fitted: Annotated[FittedModel | None, SkipValidation] = Field(default=None, exclude=True, repr=False)
    """What was measured of one model on the device, where the profile is that of a record."""

    @model_validator(mode="before")
    @classmethod
    def _every_parameter(cls, data: Any) -> Any:
        given = data.get("parameters") if isinstance(data, dict) else None
        if isinstance(given, dict):
            missing = [name for name in PARAMETERS if name not in given]
            surplus = [str(name)[:40] for name in given if name not in _EVERY]
            if missing or surplus:
                text = [f"missing parameters: {', '.join(missing)}"] if missing else []
                text += [f"unknown parameters: {', '.join(surplus)}"] if surplus else []
                raise ValueError("; ".join(text))
        return data

    @field_validator("parameters")
    @classmethod
    def _in_range(cls, parameters: dict[str, Parameter]) -> dict[str, Parameter]:
        for name, parameter in parameters.items():
            unit, low, high, _ = _EVERY[name]
            if parameter.unit != unit:
                raise ValueError(f"{name}.unit must be {unit!r}, not {parameter.unit[:20]!r}")
            if not low <= parameter.value <= high:
                raise ValueError(f"{name}.value must be from {low:g} to {high:g}, not {parameter.value!r}")
        return parameters

    def __getattr__(self, name: str) -> float:
        if name in _EVERY:
            parameter = self.parameters.get(name)
            if parameter is not None:
                return parameter.value
        raise AttributeError(name)

    def __hash__(self) -> int:
        return hash(self.digest)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy that works out its own digest."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("digest", None)
        return copy

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the content: two profiles of one digest predict the same."""
        measured = "" if self.fitted is None else self.fitted.digest
        return hashlib.sha256((self.model_dump_json() + measured).encode()).hexdigest()

    @cached_property
    def parallel_curve(self) -> SpeedupCurve:
        """Return the curve phi(k) of k separate processes."""
        return curve_through(f"{self.name} parallel processes", self.parallel.points)

    def origins(self) -> dict[str, Origin]:
        """Return the origin of every constant.

        It is for the line that says whether a figure is measured, fitted or assumed.
        """
        return {name: parameter.origin for name, parameter in self.parameters.items()} | {
            "parallel": self.parallel.origin
        }


def device_names() -> list[str]:
    """Return the names of the devices that ship, sorted."""
    return sorted(path.parent.name for path in data_dir().glob("*/device.json"))


@lru_cache(maxsize=256)
def load_device(name_or_path: str, *, allow_other: bool = False) -> DeviceProfile:
    """Return a shipped device by name, or the profile in a file.

    The name of a file ends in .json or has a separator. A file may also be a record that `loramux
    profile` measured (those that ship go by `device/model` too): the device is then the one it
    names, with the fit for the model that was measured. Jobs on other models are refused unless
    `allow_other`. Raises UsageError for an unknown name with the nearest ones, InvalidInputError
    naming every bad key of a file.
    """
    path = device_file(name_or_path)
    document = read_json(path)
    if document.get("kind") == "profile":
        return _measured(path, allow_other)
    return validate(DeviceProfile, path, document)


def device_file(name_or_path: str) -> Path:
    """Return the file of a device profile, found as `load_device` finds it.

    Raises UsageError for an unknown name, with the nearest ones.
    """
    known = device_names()
    name = name_or_path.strip().lower()
    if name in known:
        return data_dir() / name / "device.json"
    if looks_like_path(name_or_path):
        shipped = data_dir() / f"{name}.json"
        return shipped if "/" in name and shipped.is_file() else Path(name_or_path)
    raise unknown("device", name_or_path, known, ", or the path of a profile")


def with_memory(profile: DeviceProfile, memory_bytes: float, note: str) -> DeviceProfile:
    """Return the same device with another size of memory."""
    parameter = profile.parameters["memory_bytes"].model_copy(update={"value": float(memory_bytes), "note": note})
    resized = profile.model_copy(update={"parameters": {**profile.parameters, "memory_bytes": parameter}})
    resized.__dict__.pop("digest", None)  # a copy takes cached properties along
    return resized


def _measured(path: Path, allow_other: bool) -> DeviceProfile:
    from loramux_profiles.records import read_record

    record = read_record(path)
    beside = path.parent / "device.json"
    device = load_device(str(beside) if beside.is_file() else record.device.name)
    if device.name != record.device.name:
        raise UsageError(f"{path}: measured on {record.device.name!r}, beside the profile of {device.name!r}")
    digest = hashlib.sha256(read_file(path)).hexdigest()
    return device.model_copy(update={"fitted": fitted_model(record, digest, path, allow_other=allow_other)})


def parse_devices(text: str) -> tuple[DeviceProfile, ...]:
    """Return the devices of `4xa100-80g,2xl4` in order, one entry each.

    Equal types are the same object. Raises UsageError for a text of another form.
    """
    devices: list[DeviceProfile] = []
    for item in text.split(","):
        match = re.fullmatch(r"(?:(\d{1,6})x)?(\S+)", item.strip())
        if match is None:
            raise UsageError(f"devices {text[:80]!r}: each must be NAME or COUNTxNAME, as in 4xa100-80g,2xl4")
        count = int(match[1] or 1)
        if not 1 <= count <= MAX_DEVICES - len(devices):
            raise UsageError(f"devices {text[:80]!r}: from 1 to {MAX_DEVICES} in all")
        devices.extend([load_device(match[2])] * count)
    return tuple(devices)

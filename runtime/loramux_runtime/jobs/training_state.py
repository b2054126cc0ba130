"""This module says what a training job is and how far it has come.

Both are facts that JSON keeps bit for bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError
from torch import Tensor

from loramux_runtime.data import Rows, SampleStream
from loramux_runtime.fused.adapters.base import Adapter
from loramux_runtime.jobs.early_stop import KEPT_LOSSES
from loramux_runtime.jobs.jobs_file import TrainJob
from loramux_traces.errors import StateError
from loramux_traces.file_model import faults

VERSION: Final = 1
"""Version of the state; it is raised when an older one could no longer be taken up."""
OPTIMIZER: Final = "optimizer."
"""What the names of the optimizer's tensors begin with."""
_MOMENTS: Final[dict[str, set[str]]] = {"adamw": {"exp_avg", "exp_avg_sq", "step"}, "sgd": {"momentum_buffer"}}
_SHOWN: Final = 60


def _from_hex(value: Any) -> Any:
    return float.fromhex(value) if isinstance(value, str) else value


Exact = Annotated[float, BeforeValidator(_from_hex), PlainSerializer(lambda value: float(value).hex())]
"""A float that JSON holds as its hexadecimal text: NaN and infinities too."""
Score = tuple[Exact, Exact, Exact]
Count = Annotated[int, Field(ge=0)]


class SavedPosition(BaseModel):
    """SavedPosition is how far a job has come, its tensors aside."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: Count
    rows_done: Count
    tokens: Count
    stopped: bool
    diverged: str
    skipped: Count
    loss: Exact
    """Of the step in progress, as are the next three fields."""
    aux: Exact
    active: Exact
    active_tokens: Count
    first_evaluation: Score | None
    evaluation: Score | None
    best: Exact | None
    """Of the job's patience, as is the next field."""
    bad: Count
    losses_seen: Count


def read_position(facts: Mapping[str, Any]) -> SavedPosition:
    """Return the progress that `state` wrote.

    Raises StateError where it is not of this version or not whole.
    """
    if facts.get("version") != VERSION:
        raise StateError(f"its state has version {facts.get('version')!r}, this program reads {VERSION}")
    try:
        return SavedPosition.model_validate(facts.get("progress"))
    except ValidationError as error:
        first = faults(error, facts.get("progress"), SavedPosition)[0]
        raise StateError(f"its progress is not whole: {first}") from error


def identity(
    config: TrainJob,
    adapter: Adapter,
    total_steps: int,
    rows: Rows,
    stream: SampleStream,
    eval_rows: Rows | None,
) -> dict[str, Any]:
    """Return everything that a job's losses depend on and that a state does not bring along.

    The base model is left out. How many rows a micro-batch holds is no part of it either: the
    scheduler may choose anew.
    """
    layout = adapter.slab.layout
    shapes = repr([(spec.key, spec.shape, [part.name for part in spec.parts]) for spec in layout.specs])
    values = {
        "job": config.id,
        "method": adapter.method.name,
        "adapter": asdict(adapter.config),
        "seed": adapter.seed,
        "layout": hashlib.sha256(shapes.encode()).hexdigest(),
        "dtype": str(adapter.slab.params.dtype),
        "batch_size": config.batch_size,
        "total_steps": total_steps,
        "optimizer": config.optimizer.model_dump(),
        "schedule": config.schedule.model_dump(),
        "max_grad_norm": config.max_grad_norm,
        "evaluation": config.evaluation.model_dump(),
        "rows": rows.sha256,
        "eval_rows": None if eval_rows is None else eval_rows.sha256,
        "order": {"rows": stream.n_rows, "seed": stream.seed, "shuffle": stream.shuffle},
    }
    found: dict[str, Any] = _plain(values)
    return found


def check_identity(mine: Mapping[str, Any], theirs: Any) -> None:
    """Raise StateError unless the state is this very job's.

    The error names the first thing that differs.
    """
    if not isinstance(theirs, dict):
        raise StateError("its state does not say which job it is of")
    different = [name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
    if not different:
        return
    name, one, other = different[0], mine.get(different[0]), theirs.get(different[0])
    while isinstance(one, dict) and isinstance(other, dict):
        key = next(k for k in sorted(one.keys() | other.keys()) if one.get(k) != other.get(k))
        name, one, other = f"{name}.{key}", one.get(key), other.get(key)
    more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
    raise StateError(f"it is of another job: {name} is {_short(other)} there and {_short(one)} here{more}")


def check_tensors(tensors: Mapping[str, Tensor], params: Tensor, optimizer: str, progress: SavedPosition) -> None:
    """Raise StateError unless these are the tensors of a job with such parameters and progress."""
    moments = {name.removeprefix(OPTIMIZER) for name in tensors if name.startswith(OPTIMIZER)}
    if moments and moments != _MOMENTS[optimizer]:
        raise StateError(f"its {optimizer} state holds {', '.join(sorted(moments)) or 'nothing'}")
    wanted = {"params", "losses"} | ({"grads"} if progress.rows_done else set())
    others = {name for name in tensors if not name.startswith(OPTIMIZER)}
    if others != wanted:
        raise StateError(f"its tensors lack or have too much: {', '.join(sorted(others ^ wanted))}")
    for name, tensor in tensors.items():
        shape: tuple[int, ...] = tuple(params.shape)
        if name == "losses":
            shape = (min(progress.losses_seen, KEPT_LOSSES),)
        elif name == f"{OPTIMIZER}step":
            shape = ()
        if tuple(tensor.shape) != shape:
            raise StateError(f"its tensor {name} has shape {tuple(tensor.shape)}, not {shape}")
        if shape == tuple(params.shape) and name != "losses" and tensor.dtype != params.dtype:
            raise StateError(f"its tensor {name} is {tensor.dtype}, not {params.dtype}")


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back.

    So what was written compares equal to what is.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."

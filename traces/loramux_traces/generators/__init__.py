"""Make synthetic traces: `generate(kind, jobs=..., seed=..., **parameters)`.

Job i depends on (seed, i), not on how many jobs there are.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import Any, Final

from loramux_traces.errors import UsageError
from loramux_traces.generators.registry import Generator, run
from loramux_traces.job import Trace
from loramux_traces.parse_rows import Check

_MODULES: Final = {
    "philly-like": "philly_like",
    "gavel": "gavel",
    "poisson": "poisson",
    "bursty": "bursty",
    "aspen-8": "aspen8",
    "hparam-search": "hparam_search",
}
KINDS: Final = tuple(_MODULES)

__all__ = ["KINDS", "Generator", "generate", "get_generator"]


def get_generator(kind: str) -> Generator:
    """Return the generator of that name.

    Raises UsageError for an unknown name.
    """
    if kind not in _MODULES:
        close = get_close_matches(kind, _MODULES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"generator {kind!r} is unknown{hint} (known: {', '.join(_MODULES)})")
    generator: Generator = import_module(f"{__name__}.{_MODULES[kind]}").GENERATOR
    return generator


def generate(
    kind: str,
    *,
    jobs: int | None = None,
    seed: int = 0,
    name: str | None = None,
    check: Check | None = None,
    **parameters: Any,
) -> Trace:
    """Make a modelled trace; the same arguments give the same trace, byte for byte.

    `parameters` are those of the generator (`get_generator(kind).help()` lists them; `load` and
    `rho` mean the same). `check` knows names of models, as for `read_trace`
    (`loramux_profiles.checked.generate` gives it). Raises UsageError for an unknown kind, parameter
    or name, or a value out of range.
    """
    return run(get_generator(kind), jobs, seed, parameters, name, check)

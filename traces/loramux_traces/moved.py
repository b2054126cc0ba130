"""This module lets modules that have moved be imported under their old names, with a warning.

Scripts of users name modules; when the packages were laid out anew their imports should not break
on the day. The warning says the new name. Names of one underscore do not move along.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Moved:
    """Finds and makes the modules of one table (contracts: `MetaPathFinder`, `Loader`)."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self._table = table

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in self._table else None  # type: ignore[arg-type]  # it has what a Loader has

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        new = self._table[module.__name__]
        warnings.warn(f"{module.__name__} is {new} now", DeprecationWarning, stacklevel=6)
        found = importlib.import_module(new)
        names: dict[str, Any] = {name: value for name, value in vars(found).items() if not name.startswith("__")}
        module.__dict__.update(names)


def moved(package: str, table: Mapping[str, str]) -> None:
    """Have modules of a package found under their old names.

    `table`: old names to new ones, both below the package.
    """
    sys.meta_path.append(_Moved({f"{package}.{old}": f"{package}.{new}" for old, new in table.items()}))

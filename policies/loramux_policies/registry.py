"""This module finds a policy by name, by `module:Class`, or in a file of the user's.

Policies are code: they are loaded only by these three ways, never from a trace or a job. Names come
from `@register`, from the built-in rules, and from the entry-point group `loramux.policies`; a name
used twice is an error for whoever asks for it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from loramux_policies.errors import let_through
from loramux_policies.policy import Policy
from loramux_policies.said import described, message_of, raised, text_of
from loramux_traces.errors import UsageError
from loramux_traces.files import MAX_SMALL, open_file, real_path

ENTRY_POINTS = "loramux.policies"
USERS = "loramux_user_policy_"
"""How the modules of people's policy files begin."""
P = TypeVar("P", bound=type[Policy])
T = TypeVar("T")

#: What a parameter's value must be, in words.
_KINDS = {int: "a whole number", bool: "true or false"}

_known: dict[str, type[Policy]] = {}
_broken: dict[str, str] = {}
"""Rule files and entry points that could not be loaded, with the error."""
_ambiguous: dict[str, str] = {}
"""Names that an entry point claims beside another policy.

Such a name means no policy until the user says which one.
"""
_loaded = False


class DuplicatePolicyError(ValueError):
    """Means that two classes claim one name."""

    name = ""


def _duplicate(name: str, *classes: type[Policy]) -> DuplicatePolicyError:
    files = [getattr(sys.modules.get(cls.__module__), "__file__", "") for cls in classes]
    if any(cls.__module__.startswith(USERS) for cls in classes):
        said = f"give one of them another name ({' and '.join(map(str, files))})"
    else:
        said = f"say which, {' or '.join(f'{cls.__module__}:{cls.__qualname__}' for cls in classes)}"
    error = DuplicatePolicyError(f"two policies are called {name!r}: {said}")
    error.name = name
    return error


def register(name: str) -> Callable[[P], P]:
    """Decorate a class so that the policy has this name.

    DuplicatePolicyError if another class has it already, UsageError where it cannot be one.
    """
    if not isinstance(name, str) or not name.isprintable() or not name.strip() or ":" in name:
        raise UsageError(f"a policy's name is a text without a colon, not {text_of(name, 80)}")

    def put(cls: P) -> P:
        taken = _known.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise _duplicate(name, taken, cls)
        cls.name = name
        _known[name] = cls
        return cls

    return put


def names() -> list[str]:
    """Return the names of all registered policies, sorted; not those that two of them claim."""
    _load_all()
    return sorted(_known.keys() - _ambiguous.keys())


def broken() -> dict[str, str]:
    """Return the rule files and entry points that could not be loaded, with the error.

    The other policies are there all the same.
    """
    _load_all()
    return dict(_broken)


def find(name: str) -> type[Policy]:
    """Return the class of a registered name, or of `module:Class`.

    UsageError with the nearest names if there is none.
    """
    if ":" in name:
        return _from_module(name)
    _load_all()
    if name in _ambiguous:
        raise UsageError(f"policy {name!r}: {_ambiguous[name]}")
    if name not in _known:
        if name in _broken:
            raise UsageError(f"policy {name!r} could not be loaded: {_broken[name]}")
        said = "".join(f"; {what} could not be loaded: {error}" for what, error in _broken.items())
        near = difflib.get_close_matches(name, _known, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UsageError(f"no policy is called {name[:80]!r}{hint} (loramux policies lists all){said}")
    return _known[name]


def create(text: str) -> Policy:
    """Make a policy from `name`, `module:Class`, or either of them with `:key=value,...`."""
    head, _, tail = text.partition(":")
    if tail and "=" not in tail.partition(":")[0]:
        cls_name, _, tail = tail.partition(":")
        head = f"{head}:{cls_name}"
    cls = find(head)
    pairs = [_pair(part, text) for part in tail.split(",") if part]
    given = dict(pairs)
    if len(given) < len(pairs):
        raise UsageError(f"policy {text!r}: a parameter is given twice")
    known = parameters(cls)
    values = {}
    for key, value in given.items():
        if key not in known:
            allowed = ", ".join(known) or "none"
            raise UsageError(f"policy {head} has no parameter {key!r}; it has: {allowed}")
        values[key] = _convert(value, known[key].default, f"{head}:{key}")
    try:
        policy = cls(**values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"policy {text!r}: {message_of(error)}") from error
    except BaseException as error:
        let_through(error)
        raise UsageError(f"policy {text!r}: __init__ {raised(error)}") from error
    if not isinstance(policy, Policy):
        raise UsageError(f"{head} is not a loramux Policy")
    return policy


def parameters(cls: type[Policy]) -> dict[str, inspect.Parameter]:
    """Return the keyword parameters of a policy with their defaults."""
    if cls.__init__ is object.__init__:
        return {}
    found = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p for p in found if p.name != "self" and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def load_file(path: str | Path) -> list[str]:
    """Run a user's Python file and return the names it registered.

    A Policy subclass without @register goes by the `name` in its body, or by its class name.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"no policy file {file}" if not os.path.lexists(file) else f"{file}: not a regular file")
    with open_file(file, MAX_SMALL, "a policy file"):
        pass  # its size, before Python reads it whole
    _load_all()
    before = set(_known)
    where = str(real_path(file))
    # files of one name in two folders are two modules: else the second one's classes pass for the
    # first one's
    module_name = f"{USERS}{sha256(os.fsencode(where)).hexdigest()[:8]}_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    registered = set()
    try:
        spec.loader.exec_module(module)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Policy) and value.__module__ == module_name:
                if value not in _known.values():
                    register(value.name)(value)
                registered.add(value.name)
    except BaseException as error:
        let_through(error)
        raise UsageError(f"policy file {file}: {described(error)}") from error
    if not registered:
        raise UsageError(f"policy file {file} defines no Policy subclass")
    return sorted(registered | (set(_known) - before))


def _load_all() -> None:
    global _loaded
    if _loaded:
        return
    _loaded = True
    # rules are found by name, as an entry point is: the shipped rules stand above the contract that
    # they are found by
    rules = importlib.import_module(f"{__package__}.rules")
    for info in pkgutil.iter_modules(rules.__path__):
        _guarded(f"{info.name}.py", importlib.import_module, f"{rules.__name__}.{info.name}")
    for point in entry_points(group=ENTRY_POINTS):
        _guarded(point.name, _load_point, point)


def _load_point(point: EntryPoint) -> None:
    cls = point.load()
    if not (isinstance(cls, type) and issubclass(cls, Policy)):
        raise TypeError(f"entry point {point.value} is not a Policy class")
    if cls not in _known.values():
        register(point.name)(cls)
    elif _known.setdefault(point.name, cls) is not cls:
        raise _duplicate(point.name, _known[point.name], cls)


def _guarded(what: str, load: Callable[[T], object], argument: T) -> None:
    """Load one policy; a failure to load it must not take the others with it."""
    try:
        load(argument)
    except DuplicatePolicyError as error:
        _ambiguous[error.name] = _broken[what] = str(error)
    except BaseException as error:
        reason: BaseException | None = error
        while reason is not None:
            # a signal that broke an import off is no fault of the rule
            let_through(reason)
            reason = reason.__cause__ or reason.__context__
        where = f" (line {error.lineno} of {error.filename})" if isinstance(error, SyntaxError) else ""
        said = str(error.msg) if isinstance(error, SyntaxError) else message_of(error)
        _broken[what] = f"{type(error).__name__}: {said}{where}"


def _from_module(name: str) -> type[Policy]:
    module_name, _, cls_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:
        let_through(error)
        said = message_of(error) if isinstance(error, ImportError) else described(error)
        raise UsageError(f"policy {name}: cannot import {module_name}: {said}") from error
    cls: Any = getattr(module, cls_name, None)
    if not (isinstance(cls, type) and issubclass(cls, Policy)):
        raise UsageError(f"policy {name}: {module_name} has no Policy class {cls_name}")
    return cls


def _pair(part: str, text: str) -> tuple[str, str]:
    key, sign, value = part.partition("=")
    if not sign or not key or not value:
        raise UsageError(f"policy {text!r}: {part!r} is not key=value")
    return key.strip(), value.strip()


def _convert(value: str, default: Any, where: str) -> Any:
    kind = type(default)
    try:
        if kind in (int, float, type(None)) and not value.isascii():
            raise ValueError(value)  # int() takes the digits of every script
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]
        if kind is int:
            return int(value)
        if kind is float or default is None:
            number = float(value) if kind is float else _number(value)
            if isinstance(number, float) and not isfinite(number):
                raise ValueError(value)
            return number
    except (KeyError, ValueError):
        raise UsageError(f"{where}: {value!r} is not {_KINDS.get(kind, 'a finite number')}") from None
    return value


def _number(value: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value

"""This module is a Jinja sandbox in which a chat template cannot loop for ever or fill the memory.

A chat template is a program that came with a stranger's tokenizer. Jinja's sandbox keeps it from
Python's objects and bounds `range`, but nested loops, repeated strings and recursion have no bound
there. Here every turn of a loop, every call and every filter counts as operations, the more the
longer the value that it makes, and texts and numbers have a largest size.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import time
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loramux_runtime.data.values import values_within

#: Most operations of one rendering; a chat of 1,000 turns takes some ten thousand. Every 64
#: characters or elements that are made are one more, so that this bounds memory too.
MAX_OPERATIONS: Final = 2_000_000
#: Processor seconds of one rendering, looked at between operations.
MAX_CPU_S: Final = 3.0
#: Characters of a text.
MAX_SIZE: Final = 1 << 24
#: Elements of a value that is shown as text, those inside it included.
_MAX_ELEMENTS: Final = 1 << 20
#: Characters of a template.
MAX_TEMPLATE: Final = 1 << 19
_MAX_WIDTH: Final = 1 << 20
_MAX_BITS: Final = 4096
_CLOCK_EVERY: Final = 256
_SIZE_SHIFT: Final = 6
#: Types as tuples: a union that is written where it is used is built anew in each operation.
_MADE: Final = (str, list, tuple)
_NESTED: Final = (dict, Mapping, list, tuple, set)
_FUNCTIONS: Final = (types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_OF_DICTS: Final = frozenset(dir(dict))
_MOST_ATTRIBUTES: Final = 1024
_WIDE: Final = re.compile(r"\d{6}")


class TemplateLimitError(Exception):
    """A template did more than a template needs."""


def _need(fits: bool, what: str) -> None:
    if not fits:
        raise TemplateLimitError(what)


def _sized(value: Any) -> Any:
    """Return `value` if its text, nested values included, has a bounded size."""
    if isinstance(value, str):
        _need(len(value) <= MAX_SIZE, f"makes a text of over {MAX_SIZE} characters")
        return value
    if not isinstance(value, _NESTED):
        return value
    characters = 0
    for seen, (item, n_more) in enumerate(values_within(value), start=1):
        characters += len(item) if isinstance(item, str) else 0
        fits = seen + n_more <= _MAX_ELEMENTS and characters <= MAX_SIZE
        _need(fits, f"shows a value of over {_MAX_ELEMENTS} elements or {MAX_SIZE} characters")
    return value


def _bounded_arguments(arguments: Iterable[Any]) -> None:
    for argument in arguments:
        if isinstance(argument, int):
            _need(abs(argument) <= _MAX_WIDTH, f"asks for a width or count of over {_MAX_WIDTH}")
        elif isinstance(argument, tuple):
            _bounded_arguments(argument)


def _bounded_format(text: Any) -> None:
    _need(not isinstance(text, str) or _WIDE.search(text) is None, "asks for a format of over 99,999 characters")


def _bounded_growth(name: str, text: Any, arguments: tuple[Any, ...]) -> None:
    """Refuse a call of `name` on `text` whose result could be out of all proportion."""
    if name == "translate":
        raise TemplateLimitError("uses str.translate")
    if not isinstance(text, str):
        return
    first = arguments[0] if arguments else None
    size = len(text)
    if name == "replace" and isinstance(first, str) and len(arguments) > 1 and isinstance(arguments[1], str):
        size += text.count(first) * len(arguments[1])
    elif name == "join" and isinstance(first, list | tuple | str | Mapping):
        size = len(text) * len(first) + sum(len(item) for item in first if isinstance(item, str))
    elif name == "expandtabs":
        size += text.count("\t") * (first if isinstance(first, int) else 8)
    elif name == "indent":
        width = len(first) if isinstance(first, str) else first if isinstance(first, int) else 4
        size += (text.count("\n") + 1) * width
    elif name == "wordwrap":
        size *= 2 + max((len(argument) for argument in arguments if isinstance(argument, str)), default=0)
    _need(size <= MAX_SIZE, f"makes a text of over {MAX_SIZE} characters")


class _Generation(Extension):
    """Reads transformers' `{% generation %}`, which marks answers, as its body."""

    tags = {"generation"}  # noqa: RUF012  (jinja declares it so)

    def parse(self, parser: Any) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _plain_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no attribute {name!r}")


class _Namespace(jinja2.utils.Namespace):
    """Holds a template's variables; names that begin with an underscore are refused."""

    # Any keyword may name a variable, `self` too. A namespace looks up its attributes among its
    # variables, so that what it calls itself is outside of it.
    def __init__(*args: Any, **kwargs: Any) -> None:
        values = dict(*args[1:], **kwargs)
        for name in values:
            _plain_name(name)
        jinja2.utils.Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _plain_name(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter writes < > & for web pages; transformers' does not.
    _need(not isinstance(indent, int) or indent <= 64, "asks for an indent of over 64")
    return json.dumps(
        _sized(value), ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: Any) -> None:
    raise jinja2.exceptions.TemplateError(str(message))


class _Budget(threading.local):
    operations = 0
    calls = 0
    allowed = MAX_OPERATIONS
    until_s = float("inf")


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Runs chat templates as transformers does, within limits.

    A rendering is counted from `begin` on, in its own thread. Raises TemplateLimitError.
    """

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.finalize = self._shown
        self._budget = _Budget()
        self._safe: dict[tuple[type, str], bool] = {}
        """Which attributes of which types a template may have: Jinja goes by nothing else."""
        self.filters["tojson"] = _to_json
        # The same row has the same text every time: no chance, and no addresses of objects.
        del self.filters["random"], self.globals["lipsum"]
        for name, function in list(self.filters.items()):
            self.filters[name] = self._counted(name, function)
        self.globals.update(raise_exception=_raise, namespace=_Namespace)

    def begin(self, allowed: int) -> None:
        """Give the rendering that now begins a budget of operations, MAX_OPERATIONS at most."""
        self._budget.operations = self._budget.calls = 0
        self._budget.allowed = min(allowed, MAX_OPERATIONS)
        self._budget.until_s = time.thread_time() + MAX_CPU_S

    def count(self, made: int = 0) -> bool:
        """Count an operation that made a value of this size, and return True."""
        budget = self._budget
        budget.operations += 1 + (made >> _SIZE_SHIFT)
        budget.calls += 1
        _need(budget.operations <= budget.allowed, f"does not end within {budget.allowed} operations")
        if budget.calls % _CLOCK_EVERY == 0:
            _need(time.thread_time() <= budget.until_s, f"does not end within {MAX_CPU_S:g} processor seconds")
        return True

    def _made(self, value: Any) -> Any:
        """Return a value that an operation has made, once its size is counted."""
        if isinstance(value, _MADE):
            self.count(len(_sized(value) if isinstance(value, str) else value))
        return value

    def _shown(self, value: Any) -> Any:
        """Return a value that is about to be written as text, once its size is counted."""
        _need(not isinstance(value, _FUNCTIONS), "writes a function as text")
        return self._made(_sized(value))

    def joined(self, *parts: Any) -> str:
        """Return the text that `~` makes of its parts."""
        return str(self._made(self.concat([str(_sized(part)) for part in parts])))

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Return the text of a block."""
        parts = list(parts)
        _need(sum(map(len, parts)) <= MAX_SIZE, f"makes a text of over {MAX_SIZE} characters")
        return "".join(parts)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return an attribute or element for the template; turns are asked for most of them."""
        if type(obj) is dict and attribute in obj and attribute not in _OF_DICTS:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return whether a template may have an attribute."""
        key = type(obj), attr
        if key not in self._safe:
            if len(self._safe) >= _MOST_ATTRIBUTES:
                self._safe.clear()
            self._safe[key] = super().is_safe_attribute(obj, attr, value)
        return self._safe[key]

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function or method for the template."""
        if obj == self.count:
            return self.count()
        self.count()
        if isinstance(getattr(obj, "__self__", None), str):
            _bounded_arguments((*args, *kwargs.values()))
            _bounded_growth(obj.__name__, obj.__self__, (*args, *kwargs.values()))
        return self._made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Work out an operation of two values."""
        if operator == "%" and isinstance(left, str):
            _bounded_format(left)
            _bounded_arguments(right if isinstance(right, tuple) else (right,))
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _need(len(left) + len(right) <= MAX_SIZE, f"makes a value of over {MAX_SIZE} elements")
        elif operator == "*" and (hasattr(left, "__len__") or hasattr(right, "__len__")):
            many, times = (left, right) if hasattr(left, "__len__") else (right, left)
            _need(isinstance(many, str), "multiplies a list")
            _need(not isinstance(times, int) or len(many) * times <= MAX_SIZE, "multiplies a text too often")
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * max(0, right) if operator == "**" else left.bit_length() + right.bit_length()
            _need(operator not in ("*", "**") or bits <= _MAX_BITS, f"works out a number of over {_MAX_BITS} bits")
        return self._made(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the safe form of str.format."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _bounded_format(value.__self__)
            inner = wrapped

            def bounded(*args: Any, **kwargs: Any) -> str:
                _bounded_arguments((*args, *kwargs.values()))
                return inner(*args, **kwargs)

            return bounded
        return wrapped

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        # A filter may take the context, the evaluation context or the environment before its value.
        before = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            value, others = args[before], (*args[before + 1 :], *kwargs.values())
            _bounded_arguments(others)
            _bounded_growth(name, value, others)
            if name == "format":
                _bounded_format(value)
            elif name in ("string", "pprint", "join"):
                _sized(value)
            elif name == "sum":
                _need(all(not isinstance(other, list | tuple) for other in others), "adds up lists")
            self.count()
            return self._made(function(*args, **kwargs))

        return counted

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Compile a template, with a count in each turn of its loops."""
        for loop in source.find_all(nodes.For):
            loop.body.insert(0, nodes.ExprStmt(_count(loop.lineno), lineno=loop.lineno))
            if loop.test is not None:
                loop.test = nodes.And(_count(loop.lineno), loop.test, lineno=loop.lineno)
        _replace_concat(source)
        source.set_environment(self)
        return str(super()._generate(source, *args, **kwargs))


def _count(line: int) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute("count", lineno=line), [], [], None, None, lineno=line)


def _replace_concat(node: nodes.Node) -> None:
    """Let `~` be worked out by `LimitedEnvironment.joined`, which knows the sizes."""
    for child in node.iter_child_nodes():
        _replace_concat(child)
    for field, value in node.iter_fields():
        if isinstance(value, nodes.Concat):
            setattr(node, field, _joined(value))
        elif isinstance(value, list):
            value[:] = [_joined(item) if isinstance(item, nodes.Concat) else item for item in value]


def _joined(concat: nodes.Concat) -> nodes.Call:
    target = nodes.EnvironmentAttribute("joined", lineno=concat.lineno)
    return nodes.Call(target, concat.nodes, [], None, None, lineno=concat.lineno)

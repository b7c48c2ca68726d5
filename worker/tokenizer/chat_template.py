"""A model's chat template, rendered in a sandbox with bounds."""

import json
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from infra.errors import Invalid, SourceInvalid

MOST_TEMPLATE_CHARACTERS = 1 << 18
MOST_ROUNDS = 200_000
MOST_SIZE = 16 << 20  # characters of a text, items of a list

_FILTERS = frozenset({
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items",
    "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "sum",
    "title", "trim", "unique", "upper",
})  # fmt: skip
_STRING_METHODS = frozenset({
    "capitalize", "endswith", "find", "isalnum", "isalpha", "isdigit", "isspace", "join", "lower",
    "lstrip", "removeprefix", "removesuffix", "replace", "rfind", "rsplit", "rstrip", "split",
    "splitlines", "startswith", "strip", "title", "upper",
})  # fmt: skip
# Widths and flags of strftime, which make large things of small ones, are left out but for `-`.
_DATE_FORMAT = re.compile(r"(?:[^%]|%-?[A-Za-z]|%%){0,100}")
_COUNTED = "counted_rounds"
_JOINED = "joined_texts"


class ChatTemplate:
    """Turns messages into the text that the model was trained on.

    The template comes with the model and is not trusted: it sees no Python, and its loops, its
    arithmetic and the texts it builds are bounded. `render` may be called from any thread.
    """

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        """Raises SourceInvalid for a template that does not compile."""
        if len(source) > MOST_TEMPLATE_CHARACTERS:
            raise SourceInvalid(f"the chat template has {len(source)} characters")
        self._special_tokens = special_tokens
        environment = _Environment()
        try:
            tree = _Bounds().visit(environment.parse(source))
            self._template = jinja2.Template.from_code(
                environment, environment.compile(tree), environment.make_globals(None)
            )
        except (jinja2.TemplateError, RecursionError, ValueError, SyntaxError) as error:
            raise SourceInvalid(f"the chat template does not compile: {error}") from error

    def render(self, messages: list[dict[str, str]], *, now: float) -> str:
        """The conversation up to where the assistant's answer begins.

        A template may tell the day or the hour: those of `now`, in unix seconds, in UTC. Raises
        Invalid when it refuses the messages, SourceInvalid when it fails or goes beyond its bounds.
        """
        variables = self._special_tokens | {
            "messages": messages,
            "add_generation_prompt": True,
            "strftime_now": _Calendar(now),
            _COUNTED: _RoundCounter(),
            _JOINED: _join,
        }
        try:
            return self._template.render(variables)
        except _Refused as refusal:
            raise Invalid(
                f"the model's chat template refuses the messages: {refusal}", param="messages"
            ) from refusal
        except RecursionError as error:
            raise SourceInvalid("the chat template recurses without end") from error
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise SourceInvalid(f"the chat template failed: {error}") from error


class _Refused(Exception):
    """The template called raise_exception."""


class _Environment(ImmutableSandboxedEnvironment):
    """What Hugging Face templates expect of Jinja, without what makes large things of small."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """What render, macros and set blocks put their text together with."""
        return _concat(pieces)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        self.filters = {name: self.filters[name] for name in _FILTERS} | {"tojson": _to_json}
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace")}
        self.globals["raise_exception"] = _raise_exception

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr not in _STRING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`+` on anything of bounded size; `*`, `**` and `%` on small numbers."""
        if operator == "+" and isinstance(left, str | list | tuple):
            _check_size(len(left) + len(right))
        elif not (_is_small_number(left) and _is_small_number(right)):
            raise SecurityError(f"{operator} works on small numbers only")
        elif operator == "**" and right > 16:
            raise SecurityError("the power is too large")
        return super().call_binop(context, operator, left, right)


class _Bounds(NodeTransformer):
    """Rewrites a template so that its loops are counted and what `~` builds is measured."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - Jinja's name
        self.generic_visit(node)
        if node.recursive:
            raise ValueError("recursive loops are not understood")
        node.iter = _call(_COUNTED, node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:  # noqa: N802 - Jinja's name
        self.generic_visit(node)
        return _call(_JOINED, *node.nodes)


class _RoundCounter:
    """Counts the rounds of all loops of one render."""

    def __init__(self) -> None:
        self._left = MOST_ROUNDS

    def __call__(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._left -= 1
            if self._left < 0:
                raise SecurityError(f"its loops run more than {MOST_ROUNDS} rounds")
            yield item


class _Calendar:
    """What transformers gives to templates, with formats of bounded size."""

    def __init__(self, now: float) -> None:
        self._now = now

    def __call__(self, form: Any) -> str:
        if not isinstance(form, str) or not _DATE_FORMAT.fullmatch(form):
            raise SecurityError(f"it asks for a date as {str(form)[:100]!r}")
        return datetime.fromtimestamp(self._now, UTC).strftime(form)


def _call(name: str, *arguments: nodes.Node) -> nodes.Call:
    callee = nodes.Name(name, "load", lineno=arguments[0].lineno)
    return nodes.Call(callee, list(arguments), [], None, None, lineno=arguments[0].lineno)


def _join(*values: Any) -> str:
    return _concat(map(str, values))


def _concat(pieces: Iterable[str]) -> str:
    kept, size = [], 0
    for piece in pieces:
        size += len(piece)
        _check_size(size)
        kept.append(piece)
    return "".join(kept)


def _check_size(size: int) -> None:
    if size > MOST_SIZE:
        raise SecurityError(f"it builds something larger than {MOST_SIZE}")


def _is_small_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= 1 << 32


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=min(indent, 8) if indent else None)


def _raise_exception(message: Any) -> NoReturn:
    raise _Refused(str(message)[:1000])

"""containerd's filter expressions: `name==a,labels."b/c"~=/d+/`.

The grammar is that of containerd's package filters: a list of expressions means any of them, a
comma means both, `==`, `!=` and `~=` compare, a field alone asks whether it is there.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from snapshotter.containerd.snapshot import Reason, Refused, Snapshot

MOST_BYTES = 16 << 10

_SPACE = re.compile(r"\s*")
_FIELD = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR = re.compile(r"[=!~]+")
_VALUE = re.compile(r"[^\s,]+")
_QUOTED = {
    quote: re.compile(rf"[{quote}]((?:[^{quote}\\\n]|\\.)*)[{quote}]") for quote in ('"', "/", "|")
}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}

Filter = Callable[[Snapshot], bool]


class Operator(StrEnum):
    """How a field is compared."""

    EQUAL = "=="
    NOT_EQUAL = "!="
    MATCHES = "~="


@dataclass(frozen=True)
class Selector:
    """One comparison; without operator it asks whether the field is there."""

    path: tuple[str, ...]
    operator: Operator | None = None
    value: str = ""

    def __call__(self, snapshot: Snapshot) -> bool:
        found = _field(snapshot, self.path)
        match self.operator:
            case None:
                return found is not None
            case Operator.EQUAL:
                return found == self.value
            case Operator.NOT_EQUAL:
                return found != self.value
            case Operator.MATCHES:
                return re.search(self.value, found or "") is not None


def parse_filters(expressions: Sequence[str]) -> Filter:
    """What matches any of the expressions; no expression, or an empty one, matches everything.

    Raises Refused (invalid argument) for what is not one.
    """
    alternatives = [_Parser(expression).selectors() for expression in expressions]

    def matches(snapshot: Snapshot) -> bool:
        return not alternatives or any(
            all(selector(snapshot) for selector in selectors) for selectors in alternatives
        )

    return matches


def _field(snapshot: Snapshot, path: tuple[str, ...]) -> str | None:
    match path:
        case ("name", *_):
            return snapshot.name
        case ("parent", *_):
            return snapshot.parent
        case ("kind", *_):
            return snapshot.kind.value
        case ("labels", *label):
            return snapshot.labels.get(".".join(label))
        case _:
            return None


class _Parser:
    """Reads one expression from left to right."""

    def __init__(self, text: str) -> None:
        if len(text) > MOST_BYTES:
            raise Refused(Reason.INVALID_ARGUMENT, f"a filter of {len(text)} characters")
        self._text = text
        self._at = 0

    def selectors(self) -> list[Selector]:
        """All of them; none for an empty expression."""
        if not self._text:
            return []
        found = [self._selector()]
        while not self._is_over():
            self._expect(",")
            found.append(self._selector())
        return found

    def _selector(self) -> Selector:
        path = [self._name()]
        while self._follows("."):
            path.append(self._name())
        if self._is_over() or self._peek() == ",":
            return Selector(tuple(path))
        symbol = self._take(_OPERATOR) or ""
        try:
            operator = Operator(symbol)
        except ValueError:
            raise self._wrong('expected an operator ("=="|"!="|"~=")') from None
        value = self._value(has_patterns=operator is Operator.MATCHES)
        if operator is Operator.MATCHES:
            try:
                re.compile(value)
            except re.error as error:
                raise self._wrong(f"not a regular expression: {error}") from None
        return Selector(tuple(path), operator, value)

    def _name(self) -> str:
        self._take(_SPACE)
        if self._peek() == '"':
            return self._quoted()
        name = self._take(_FIELD)
        if name is None:
            raise self._wrong("expected field or quoted")
        return name

    def _value(self, *, has_patterns: bool) -> str:
        self._take(_SPACE)
        quotes = '"/|' if has_patterns else '"'
        if self._peek() and self._peek() in quotes:
            return self._quoted()
        value = None if self._peek() in {"/", "|"} else self._take(_VALUE)
        if value is None:
            raise self._wrong("expected value or quoted")
        return value

    def _quoted(self) -> str:
        quote = self._peek()
        found = _QUOTED[quote].match(self._text, self._at)
        if found is None:
            raise self._wrong("quoted literal not terminated")
        self._at = found.end()
        return _ESCAPE.sub(lambda escape: self._unescaped(escape[1], quote), found[1])

    def _unescaped(self, escape: str, quote: str) -> str:
        if escape == quote or escape in _SIMPLE:
            return _SIMPLE.get(escape, escape)
        if escape[0] in "xuU" and len(escape) > 1:
            return chr(min(int(escape[1:], 16), 0x10FFFF))
        if len(escape) == 3:
            return chr(int(escape, 8))
        raise self._wrong("illegal escape sequence")

    def _is_over(self) -> bool:
        self._take(_SPACE)
        return self._at == len(self._text)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _follows(self, character: str) -> bool:
        if self._peek() != character:
            return False
        self._at += 1
        return True

    def _expect(self, character: str) -> None:
        if not self._follows(character):
            raise self._wrong(f"unexpected input: {self._peek()}")

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found[0]

    def _wrong(self, what: str) -> Refused:
        before, here, after = (
            self._text[: self._at],
            self._peek(),
            self._text[self._at + 1 :],
        )
        place = f"{before} >|{here}|< {after}" if here else self._text
        return Refused(Reason.INVALID_ARGUMENT, f"filters: parse error: [{place}]: {what}")

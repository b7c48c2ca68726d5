"""Reads YAML as plain data with the line of every key; bounded, without tags or aliases."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

MAX_BYTES: Final = 64 << 10
MAX_DEPTH: Final = 16
MAX_NODES: Final = 5000
MAX_PROBLEMS: Final = 50
MAX_NUMBER_LENGTH: Final = 64

Path = tuple[str | int, ...]

# libyaml reads a file of the largest size in 20 ms, the Python parser in a third of a second.
_Loader: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Scalars as YAML 1.2's core schema has them: `no`, `on` and 1:30 are strings, not what 1.1 made.
_NULL: Final = re.compile(r"~|null|Null|NULL|")
_TRUE: Final = re.compile(r"true|True|TRUE")
_FALSE: Final = re.compile(r"false|False|FALSE")
_INTEGER: Final = re.compile(r"[-+]?[0-9]+")
_BASED_INTEGER: Final = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY: Final = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN: Final = re.compile(r"\.(nan|NaN|NAN)")


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the text; both count from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class YamlProblem:
    """Something that is not accepted, and where."""

    mark: Mark
    message: str


@dataclass
class YamlTree:
    """Plain data, the mark of every key and item by its path, and what was wrong."""

    data: Any = None
    marks: dict[Path, Mark] = field(default_factory=dict)
    problems: list[YamlProblem] = field(default_factory=list)


def read_yaml(text: str) -> YamlTree:
    """Never raises: a file that cannot be read on has the reason as its last problem."""
    tree = YamlTree()
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        tree.problems.append(YamlProblem(_mark_at(text, error.start), "half a surrogate pair"))
        return tree
    if size > MAX_BYTES:
        message = f"is {size} bytes long, at most {MAX_BYTES} are accepted"
        tree.problems.append(YamlProblem(Mark(1, 1), message))
        return tree
    try:
        _Builder(tree, yaml.parse(text, Loader=_Loader)).build()
    except _GiveUp:
        pass
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        tree.problems.append(YamlProblem(_mark(mark), f"is not YAML: {error.problem}"))
    except yaml.reader.ReaderError as error:
        message = f"is not YAML: {error.reason}"
        tree.problems.append(YamlProblem(_mark_at(text, error.position), message))
    return tree


class _GiveUp(Exception):
    """Reading on makes no sense."""


class _Builder:
    """Turns parser events into data, noting problems on the way."""

    def __init__(self, tree: YamlTree, events: Iterator[Any]) -> None:
        self._tree = tree
        self._events = events
        self._nodes = 0

    def build(self) -> None:
        for event in self._events:
            match event:
                case yaml.StreamStartEvent() | yaml.StreamEndEvent() | yaml.DocumentEndEvent():
                    continue
                case yaml.DocumentStartEvent() if self._nodes:
                    self._problem(event, "a second document begins here, one is accepted")
                    raise _GiveUp
                case yaml.DocumentStartEvent():
                    continue
                case _:
                    self._tree.data = self._node(event, ())

    def _node(self, event: Any, path: Path) -> Any:
        self._count(event, path)
        self._refuse_features(event)
        match event:
            case yaml.ScalarEvent():
                return _scalar(event)
            case yaml.SequenceStartEvent():
                return self._sequence(path)
            case yaml.MappingStartEvent():
                return self._mapping(path)
            case _:  # an alias, refused above
                return None

    def _sequence(self, path: Path) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            place = (*path, len(items))
            self._tree.marks[place] = _mark(event.start_mark)
            items.append(self._node(event, place))
        return items

    def _mapping(self, path: Path) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, path)
            if key in entries:
                first = self._tree.marks[*path, key].line
                self._problem(event, f"{_shown(key)} is given twice, first on line {first}")
            else:
                self._tree.marks[*path, key] = _mark(event.start_mark)
            entries[key] = self._node(next(self._events), (*path, key))
        return entries

    def _key(self, event: Any, path: Path) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            self._problem(event, "a key must be a word")
            raise _GiveUp
        self._node(event, path)
        return str(event.value)

    def _count(self, event: Any, path: Path) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._problem(event, f"more than {MAX_NODES} values are not accepted")
            raise _GiveUp
        if len(path) > MAX_DEPTH:
            self._problem(event, f"nesting deeper than {MAX_DEPTH} is not accepted")
            raise _GiveUp

    def _refuse_features(self, event: Any) -> None:
        if isinstance(event, yaml.AliasEvent):
            self._problem(event, f"aliases (*{str(event.anchor)[:40]}) are not accepted")
            return
        if event.anchor is not None:
            self._problem(event, f"anchors (&{str(event.anchor)[:40]}) are not accepted")
        if event.tag is not None:
            self._problem(event, f"tags ({str(event.tag)[:60]}) are not accepted")

    def _problem(self, event: Any, message: str) -> None:
        self._tree.problems.append(YamlProblem(_mark(event.start_mark), message))
        if len(self._tree.problems) >= MAX_PROBLEMS:
            raise _GiveUp


def _scalar(event: yaml.ScalarEvent) -> str | int | float | bool | None:
    text: str = event.value
    if not event.implicit[0]:  # quoted or a block: always a string
        return text
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
        return text.lower() == "true"
    return text if len(text) > MAX_NUMBER_LENGTH else _number(text)


def _number(text: str) -> str | int | float:
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BASED_INTEGER.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITY.fullmatch(text) or _NAN.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def _shown(key: str) -> str:
    return ascii(key if len(key) <= 60 else key[:60] + "…")


def _mark(mark: Any) -> Mark:
    return Mark(1, 1) if mark is None else Mark(mark.line + 1, mark.column + 1)


def _mark_at(text: str, position: int) -> Mark:
    before = text[:position]
    return Mark(before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1)

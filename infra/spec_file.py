"""Reads `model.yaml` into a ModelSpec, or says everything that is wrong with it at once."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from infra.contracts.base import MODEL_NAME_PATTERN
from infra.contracts.model_spec import ModelSpec
from infra.errors import SpecInvalid
from infra.schedule import problems_of
from infra.yaml_tree import MAX_PROBLEMS, Mark, read_yaml
from infra.yaml_tree import Path as DataPath

RELATIVE_PREFIXES: Final = ("./", "../", "/", "~/")
HUB_REFERENCE: Final = re.compile(r"[A-Za-z0-9._-]{1,96}/[A-Za-z0-9._-]{1,96}(@[A-Za-z0-9._/-]+)?")
QUOTED_WORD: Final = re.compile(r"'([^']+)'")
MAX_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class SpecProblem:
    """One thing wrong with a spec; `line` and `column` count from 1, None without a text."""

    line: int | None
    column: int | None
    path: str
    message: str
    suggestion: str | None = None

    def __str__(self) -> str:
        path = f"{self.path}: " if self.path else ""
        ending = f"; did you mean {self.suggestion}?" if self.suggestion else ""
        return f"{path}{self.message}{ending}"


def load_spec(text: str, *, filename: str, folder: Path | None = None) -> ModelSpec:
    """Reads a spec's text, YAML or JSON; file sources may be relative to `folder` where one is
    given.

    Raises SpecInvalid whose fact `errors` lists every problem as an object with line, column,
    path, message and suggestion, in the order of the text.
    """
    tree = read_yaml(text)
    problems = [
        SpecProblem(problem.mark.line, problem.mark.column, "", problem.message)
        for problem in tree.problems
    ]
    if tree.data is None and not problems:
        problems.append(SpecProblem(1, 1, "", "is empty"))
    if isinstance(tree.data, dict) and folder is not None:
        _make_absolute(tree.data, "source", folder)
        if isinstance(engine := tree.data.get("engine"), dict):
            _make_absolute(engine, "draft_source", folder)
    return _checked(tree.data, tree.marks, problems, filename)


def validate_spec(data: object, *, filename: str) -> ModelSpec:
    """The same for data that is parsed already, such as a JSON body: no lines, else alike."""
    return _checked(data, {}, [], filename)


def absolute_source(source: str, folder: Path) -> str:
    """`./dir`, `file:dir` and the like as file:///…; any other source as it is."""
    if source.startswith("file:") and not source.startswith("file://"):
        path = source.removeprefix("file:")
    elif source in {".", ".."} or source.startswith(RELATIVE_PREFIXES):
        path = source
    else:
        return source
    return (folder / Path(path).expanduser()).resolve().as_uri()


def _make_absolute(data: dict[str, Any], key: str, folder: Path) -> None:
    source = data.get(key)
    if isinstance(source, str) and "\0" not in source:
        data[key] = absolute_source(source, folder)


def _checked(
    data: object, marks: Mapping[DataPath, Mark], problems: list[SpecProblem], filename: str
) -> ModelSpec:
    spec: ModelSpec | None = None
    if not problems or isinstance(data, dict):
        spec, found = _validated(data)
        located = [_located(path, error, marks) for path, error in found[:MAX_PROBLEMS]]
        problems = [*problems, *located]
    if spec is not None:
        problems = [*problems, *_of_schedule(spec, marks)]
    if spec is not None and not problems:
        return spec
    raise _spec_invalid(problems, filename)


def _of_schedule(spec: ModelSpec, marks: Mapping[DataPath, Mark]) -> Iterator[SpecProblem]:
    for place, entry in enumerate(spec.scaling.schedule):
        for field, message in problems_of(entry):
            mark = _nearest_mark(("scaling", "schedule", place, field), marks)
            yield SpecProblem(
                line=mark.line if mark else None,
                column=mark.column if mark else None,
                path=f"scaling.schedule.{place}.{field}",
                message=f"{_value(getattr(entry, field))} {message}",
            )


def _spec_invalid(problems: Iterable[SpecProblem], filename: str) -> SpecInvalid:
    ordered = sorted(
        dict.fromkeys(problems), key=lambda problem: (problem.line or 0, problem.column or 0)
    )
    first = ordered[0]
    where = "" if first.line is None else f" on line {first.line}"
    count = "a problem" if len(ordered) == 1 else f"{len(ordered)} problems, the first"
    return SpecInvalid(
        f"{filename} has {count}{where}: {first}",
        errors=[
            {
                "line": problem.line,
                "column": problem.column,
                "path": problem.path,
                "message": problem.message,
                "suggestion": problem.suggestion,
            }
            for problem in ordered[:MAX_PROBLEMS]
        ],
    )


def _validated(data: object) -> tuple[ModelSpec | None, list[tuple[DataPath, ErrorDetails]]]:
    """Validates; then again without the bad values, since they hide what spans two fields."""
    found: dict[DataPath, ErrorDetails] = {}
    while True:
        try:
            return ModelSpec.model_validate(data, strict=True), list(found.items())
        except ValidationError as failure:
            errors = {error["loc"]: error for error in failure.errors(include_url=False)}
        if not errors.keys() - found.keys():
            return None, list(found.items())
        found |= {path: errors[path] for path in errors if path not in found}
        data = _without(data, errors)


def _without(data: Any, paths: Iterable[DataPath]) -> Any:
    """A copy of the data that lacks what lies at `paths`."""
    gone = set(paths)
    if () in gone or not isinstance(data, dict):
        return data

    def kept(value: Any, path: DataPath) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            key: kept(inner, (*path, key))
            for key, inner in value.items()
            if (*path, key) not in gone
        }

    return kept(data, ())


def _located(path: DataPath, error: ErrorDetails, marks: Mapping[DataPath, Mark]) -> SpecProblem:
    mark = _nearest_mark(path, marks)
    message, suggestion = _explained(path, error)
    return SpecProblem(
        line=mark.line if mark else None,
        column=mark.column if mark else None,
        path=".".join(_shown(str(part)) for part in path),
        message=message,
        suggestion=suggestion,
    )


def _nearest_mark(path: DataPath, marks: Mapping[DataPath, Mark]) -> Mark | None:
    """The mark of the path itself, or of what should have held it."""
    if not marks:
        return None
    while path and path not in marks:
        path = path[:-1]
    return marks.get(path, Mark(1, 1))


def _explained(path: DataPath, error: ErrorDetails) -> tuple[str, str | None]:
    """The problem in a user's words, and what they may have meant."""
    given = error["input"]
    match error["type"], path:
        case "missing", _:
            return "is required", None
        case "extra_forbidden", (*parents, key):
            known = _known_keys(parents)
            suggestion = next(iter(get_close_matches(str(key), known, n=1, cutoff=0.5)), None)
            return "is unknown", suggestion
        case "tuple_type", _:
            return f"must be a list, not {_value(given)}", None
        case "model_type" | "model_attributes_type", _:
            return "must be a mapping of settings", None
        case "literal_error", _:
            words = QUOTED_WORD.findall(error["msg"])
            suggestion = next(iter(get_close_matches(str(given), words, n=1, cutoff=0.4)), None)
            return f"{_must(error)}, not {_value(given)}", suggestion
        case "string_pattern_mismatch", ("name",):
            return _explained_name(str(given)), _possible_name(str(given))
        case "value_error", ("source",) if HUB_REFERENCE.fullmatch(str(given)):
            return f"{_value(given)} {_reason(error)}", f"hf://{given}"
        case "value_error", ("source",):
            return f"{_value(given)} {_reason(error)}", None
        case "value_error", _:
            return _reason(error), None
        case _:
            return f"{_must(error)}, not {_value(given)}", None


def _known_keys(parents: Iterable[str | int]) -> list[str]:
    model: Any = ModelSpec
    for part in parents:
        is_place = isinstance(part, int)  # in a list
        model = get_args(model)[0] if is_place else model.model_fields[part].annotation
    assert issubclass(model, BaseModel)
    return list(model.model_fields)


def _must(error: ErrorDetails) -> str:
    message = error["msg"].replace("Input should be", "must be")
    return message.replace("String should have", "must have")


def _reason(error: ErrorDetails) -> str:
    return error["msg"].removeprefix("Value error, ")


def _explained_name(name: str) -> str:
    for place, character in enumerate(name, start=1):
        if not re.fullmatch(r"[a-z0-9-]", character):
            title = unicodedata.name(character, "an unnamed character")
            return (
                f"{_value(name)} has {_value(character)} ({title}) at position {place}; "
                "lower-case letters a-z, digits and hyphens are accepted"
            )
    if len(name) > 63:
        return f"has {len(name)} characters, at most 63 are accepted"
    return f"{_value(name)} must begin and end with a letter or digit"


def _possible_name(name: str) -> str | None:
    """The name without accents, capitals and other characters, when that is a name."""
    plain = unicodedata.normalize("NFKD", name[:256])
    letters = "".join(mark for mark in plain if not unicodedata.combining(mark)).lower()
    if not letters.isascii():
        return None
    slug = re.sub(r"[^a-z0-9]+", "-", letters).strip("-")
    return slug if re.match(MODEL_NAME_PATTERN, slug) and slug != name else None


def _value(value: object) -> str:
    """A value as it may be shown: short, and with every unusual character spelt out."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case str():
            return f"'{_shown(value)}'"
        case _:
            return _shown(str(value))


def _shown(text: str) -> str:
    short = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
    return ascii(short)[1:-1]

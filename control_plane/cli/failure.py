"""Why a command failed, in the words it is told in: `error:`, details, `hint:`."""

from collections.abc import Iterable, Mapping
from typing import Any

from infra.contracts.problem import Problem
from infra.errors import PlatformError

MAX_DETAILS = 50


class CommandFailed(Exception):
    """The operation failed; `details` are further lines between the error and its hint."""

    def __init__(
        self, message: str, *, hint: str | None = None, details: Iterable[str] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = tuple(details)


def from_problem(problem: Problem, *, filename: str | None = None) -> CommandFailed:
    """What the platform said, with all it lists as wrong."""
    return CommandFailed(
        problem.detail, hint=problem.hint, details=_details(problem.facts, filename)
    )


def from_platform_error(error: PlatformError, *, filename: str | None = None) -> CommandFailed:
    """What our own code raised on this side of the wire."""
    return CommandFailed(error.detail, hint=error.hint, details=_details(error.facts, filename))


def _details(facts: Mapping[str, Any], filename: str | None) -> list[str]:
    """One line for each entry of the fact `errors`, where there is more to it than the message."""
    errors = facts.get("errors")
    if not isinstance(errors, list):
        return []
    known = [entry for entry in errors[:MAX_DETAILS] if isinstance(entry, dict)]
    return [_detail(entry, filename) for entry in known] if len(known) > 1 else []


def _detail(entry: Mapping[str, Any], filename: str | None) -> str:
    place = filename or ""
    if entry.get("line") is not None:
        place += f":{entry['line']}:{entry.get('column') or 1}"
    path = entry.get("path") or entry.get("pointer") or ""
    suggestion = f"; did you mean {entry['suggestion']}?" if entry.get("suggestion") else ""
    parts = [place, str(path), f"{entry.get('message', '')}{suggestion}"]
    return ": ".join(part for part in parts if part)

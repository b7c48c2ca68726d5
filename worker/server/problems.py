"""Error bodies: the only maker of them here (RFC 9457, with OpenAI's error object inside)."""

from collections.abc import Iterator
from typing import Any

import orjson
from pydantic import ValidationError

from infra.contracts.generation import JsonObject
from infra.errors import Invalid, PlatformError
from worker.server import sse

CONTENT_TYPE = b"application/problem+json"
MOST_ERRORS = 20


def body(error: PlatformError, *, path: str | None) -> bytes:
    """The JSON body; members that say nothing are left out."""
    problem = error.problem(path).model_dump(mode="json")
    return orjson.dumps({name: value for name, value in problem.items() if value is not None})


def event(error: PlatformError) -> bytes:
    """The last event of a stream that failed after its head was sent."""
    return sse.named_event("error", {"error": error.problem().error.model_dump(mode="json")})


def unexpected() -> PlatformError:
    """What a client learns of a defect of ours; the log has the rest."""
    return PlatformError("the replica failed at this request; its log says why")


def of_validation(error: ValidationError, data: JsonObject) -> Invalid:
    """All that is wrong with a request, up to a bound, in the caller's own field names."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    errors = [
        {"path": _path(item["loc"], data, item["type"] == "missing"), "message": item["msg"]}
        for item in found[:MOST_ERRORS]
    ]
    first = errors[0]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return Invalid(
        f"{first['path'] or 'the body'}: {first['message']}{more}",
        param=first["path"] or None,
        errors=errors,
    )


def _path(location: tuple[int | str, ...], data: Any, is_missing: bool) -> str:
    """`messages[3].role`; what pydantic adds to name a branch of a union is left out."""
    missing = f".{location[-1]}" if is_missing else ""
    return ("".join(_steps(location, data)) + missing).removeprefix(".")


def _steps(location: tuple[int | str, ...], data: Any) -> Iterator[str]:
    for part in location:
        match part, data:
            case int(), list():
                yield f"[{part}]"
                data = data[part]
            case str(), dict() if part in data:
                yield f".{part}"
                data = data[part]

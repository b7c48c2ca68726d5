"""Error bodies: the only maker of them here (RFC 9457, with an `error` inside that clients of
OpenAI's API, or of the open inference protocol, read)."""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import Response

from control_plane.activator.call import Header, ReplicaRefused
from control_plane.queue.job import Job
from infra.contracts.problem import Problem
from infra.errors import PlatformError

CONTENT_TYPE = "application/problem+json"
_INFERENCE = "/v2"  # where the open inference protocol is


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """A whole response but for its framing."""

    status: int
    headers: tuple[Header, ...]
    body: bytes


def response(error: PlatformError, *, path: str | None) -> ErrorResponse:
    """The error as the answer to a request for `path`."""
    problem = error.problem(path)
    is_inference = _speaks_inference(path)
    body = in_words(problem) if is_inference else _written(problem)
    own = {**error.headers(), **_headers_of_status(error)}
    headers = (
        (b"content-type", b"application/json" if is_inference else CONTENT_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
        *((name.lower().encode(), value.encode()) for name, value in own.items()),
    )
    return ErrorResponse(error.status.value, headers, body)


def event(error: PlatformError | ReplicaRefused, *, path: str) -> bytes:
    """The last event of a stream that fails after its head was sent: the problem as its data."""
    problem = error.problem if isinstance(error, ReplicaRefused) else error.problem()
    body = in_words(problem) if _speaks_inference(path) else _written(problem)
    return b"event: error\ndata: %b\n\n" % body


def in_words(problem: Problem) -> bytes:
    """The problem with an `error` that is a sentence, as the open inference protocol has it."""
    members, param = _members(problem), problem.error.param
    hint = "" if problem.hint is None else f" ({problem.hint})"
    members["error"] = f"{problem.detail}{hint}"
    return orjson.dumps(members if param is None else {**members, "param": param})


def _speaks_inference(path: str | None) -> bool:
    return path is not None and (path == _INFERENCE or path.startswith(f"{_INFERENCE}/"))


def of_job(job: Job) -> Response:
    """Why a failed job failed, as the answer to who asks for its result."""
    assert job.problem is not None, "it failed"
    problem = Problem.model_validate_json(job.problem)
    return Response(_written(problem), problem.status, {"content-type": CONTENT_TYPE})


def unexpected() -> PlatformError:
    """What a client learns of a defect of ours; the log has the rest."""
    return PlatformError("the platform failed at this request; its log says why")


def page(slug: str) -> str | None:
    """The documentation of a kind of error as HTML; None where there is no such kind."""
    kind = _kinds().get(slug)
    if kind is None:
        return None
    title = html.escape(_title(kind))
    return _PAGE.format(
        title=title,
        status=f"{kind.status.value} {html.escape(kind.status.phrase)}",
        meaning=html.escape(_meaning(kind)),
        code=html.escape(kind.slug.replace("-", "_")),
        openai_type=html.escape(kind.openai_type),
    )


def index() -> str:
    """A page that lists every kind of error."""
    kinds = sorted(_kinds().items())
    items = "\n".join(
        f'<li><a href="/problems/{slug}">{slug}</a>: {html.escape(_meaning(kind))}</li>'
        for slug, kind in kinds
    )
    return f"<!doctype html><title>Problems</title><h1>Problems</h1><ul>\n{items}\n</ul>"


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<h1>{title}</h1>
<p>{meaning}</p>
<dl>
<dt>HTTP status</dt><dd>{status}</dd>
<dt>OpenAI error type</dt><dd>{openai_type}</dd>
<dt>OpenAI error code</dt><dd>{code}</dd>
</dl>
<p><a href="/problems">All problems</a></p>
</html>
"""


def _kinds() -> dict[str, type[PlatformError]]:
    return {kind.slug: kind for kind in _descendants(PlatformError)}


def _descendants(kind: type[PlatformError]) -> Iterator[type[PlatformError]]:
    yield kind
    for heir in kind.__subclasses__():
        yield from _descendants(heir)


def _title(kind: type[PlatformError]) -> str:
    return kind.slug.replace("-", " ").capitalize()


def _meaning(kind: type[PlatformError]) -> str:
    if kind is PlatformError:
        return "Something failed that should not have; the platform's log has the details."
    return " ".join((kind.__doc__ or "").split())


def _written(problem: Problem) -> bytes:
    return orjson.dumps(_members(problem))


def _members(problem: Problem) -> dict[str, Any]:
    members: dict[str, Any] = problem.model_dump(mode="json")
    return {name: value for name, value in members.items() if value is not None}


def _headers_of_status(error: PlatformError) -> dict[str, str]:
    if error.status == 401:
        return {"WWW-Authenticate": "Bearer"}
    if error.status == 405:
        return {"Allow": ", ".join(error.facts.get("allowed", ()))}
    return {}

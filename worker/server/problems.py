"""Error bodies: the only maker of them here (RFC 9457, with OpenAI's error object inside)."""

import orjson

from infra.errors import PlatformError
from worker.server import sse

CONTENT_TYPE = b"application/problem+json"


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

"""A request's body: bounded bytes, then JSON, then a contract."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from infra.contracts.generation import JsonObject
from infra.errors import BodyTooLarge, Invalid, MalformedJson
from worker.server import problems
from worker.server.in_flight import Disconnected

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = dict[bytes, bytes]
Body = TypeVar("Body", bound=BaseModel)


async def read_body(receive: Receive, headers: Headers, *, most_bytes: int) -> bytes:
    """The whole body. Raises BodyTooLarge before it is read where Content-Length tells, else as
    soon as it is known; Disconnected when the client leaves."""
    if int(headers.get(b"content-length", b"0")) > most_bytes:
        raise _too_large(most_bytes)
    parts: list[bytes] = []
    received = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        parts.append(message.get("body", b""))
        received += len(parts[-1])
        if received > most_bytes:
            raise _too_large(most_bytes)
        more = message.get("more_body", False)
    return b"".join(parts)


def _too_large(most_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body has more than {most_bytes} bytes", limit=most_bytes)


def json_object(body: bytes) -> JsonObject:
    """The body as a JSON object; raises MalformedJson or Invalid.

    orjson refuses NaN, invalid UTF-8, lone surrogates and nesting beyond 1,024 levels.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise MalformedJson(f"the body is not JSON: {error.msg} ({where})") from None
    if not isinstance(data, dict):
        raise Invalid("the body is not a JSON object")
    return data


def validated(contract: type[Body], data: JsonObject) -> Body:
    """The contract's value; raises Invalid with every problem found, up to a bound."""
    try:
        return contract.model_validate(data)
    except ValidationError as error:
        raise problems.of_validation(error, data) from None

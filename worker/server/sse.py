"""Server-sent events as bytes (WHATWG HTML, section 9.2)."""

from typing import Any

import orjson

DONE = b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    """One event with JSON data."""
    return b"data: %b\n\n" % orjson.dumps(data)


def named_event(name: str, data: dict[str, Any]) -> bytes:
    """One event of a named type with JSON data."""
    return b"event: %b\n%b" % (name.encode(), event(data))

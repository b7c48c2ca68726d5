"""A unix socket on which programs of one machine talk: one JSON object asks, one answers.

Each is preceded by its length in four bytes, big endian. A question is `{"verb": …, …}`; the
answer `{"result": …}`, or `{"error": slug, "detail": …}` for an error of the platform's.
"""

import json
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import structlog

from infra.errors import Invalid, PlatformError
from infra.json_file import parse_json_object
from infra.unix_server import UnixServer

log = structlog.get_logger()

Verb = Callable[[Mapping[str, Any]], Any]  # the question to the result; raises PlatformError
Verbs = Mapping[str, Verb]

MOST_MESSAGE_BYTES = 2 << 20
_MOST_CONNECTIONS = 32
_PATIENCE_S = 60.0  # with a peer that says nothing more
_LENGTH = struct.Struct(">I")


class JsonServer:
    """What a connection may ask is made when it comes, and its end ends that."""

    def __init__(self, path: Path, verbs: Callable[[], AbstractContextManager[Verbs]]) -> None:
        self._verbs = verbs
        self._server = UnixServer(path, self._serve, name="control", most=_MOST_CONNECTIONS)

    def start(self) -> None:
        """Answers from now on, until the process ends."""
        self._server.start()

    def _serve(self, connection: socket.socket) -> None:
        with self._verbs() as verbs, suppress(OSError, Invalid):
            connection.settimeout(_PATIENCE_S)
            while (question := receive(connection)) is not None:
                send(connection, _answer(verbs, question))


def _answer(verbs: Verbs, question: Mapping[str, Any]) -> dict[str, Any]:
    verb = verbs.get(str(question.get("verb")))
    try:
        if verb is None:
            raise Invalid(f"there is no verb {str(question.get('verb'))[:50]!a}")
        return {"result": verb(question)}
    except PlatformError as error:
        return {"error": error.slug, "detail": error.detail}
    except Exception:
        log.exception("control.failed", verb=question.get("verb"))
        return {"error": PlatformError.slug, "detail": "the log of who was asked has the reason"}


def send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Sends one message. Raises OSError; Invalid when it is too large."""
    encoded = json.dumps(message).encode()
    if len(encoded) > MOST_MESSAGE_BYTES:
        raise Invalid(f"a control message of {len(encoded)} bytes", limit=MOST_MESSAGE_BYTES)
    connection.sendall(_LENGTH.pack(len(encoded)) + encoded)


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """The next message; None at the end. Raises OSError, Invalid."""
    head = _exactly(connection, _LENGTH.size)
    if not head:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MOST_MESSAGE_BYTES:
        raise Invalid(f"a control message of {length} bytes", limit=MOST_MESSAGE_BYTES)
    return parse_json_object(_exactly(connection, length), name="control message")


def _exactly(connection: socket.socket, length: int) -> bytes:
    """So many bytes, or none where the peer has ended before. Raises ConnectionError between."""
    received = bytearray()
    while len(received) < length:
        part = connection.recv(min(length - len(received), 1 << 16))
        if not part:
            if received:
                raise ConnectionError("the peer ended within a message")
            return b""
        received += part
    return bytes(received)

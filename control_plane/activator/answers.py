"""What becomes of the body of a replica's answer: passed on by the event, whole, or read here."""

from collections.abc import Callable
from typing import Final

import orjson
from pydantic import ValidationError

from control_plane.activator.call import Header, ReplicaRefused
from control_plane.activator.exchange import Exchange
from control_plane.activator.replica_client import Headers
from infra.contracts.problem import Problem
from infra.errors import ReplicaLost

# An answer that is not a stream is kept until it is whole, so that another replica can give it
# when this one dies; one that is larger than this goes out as it comes.
WHOLE_BYTES: Final = 1 << 20

# Half an event that is larger than this goes out as it is.
_HALF_EVENT_BYTES: Final = 1 << 20
_BLANK_LINE: Final = b"\n\n"
_OTHER_BLANK_LINE: Final = b"\r\n\r\n"

_PASSED_ON: Final = frozenset(
    {b"content-type", b"cache-control", b"retry-after", b"server-timing", b"x-accel-buffering"}
)
_LENGTH: Final = b"content-length"
_OK: Final = 200

# Draws up the account of a cold request at its first token: the `Server-Timing` of the answer.
Account = Callable[[], bytes]


class Answer:
    """The body after a head that is an answer.

    `is_passed_on`: the client has seen some of it, so no other replica can take over.
    """

    __slots__ = ("is_passed_on",)

    def __init__(self) -> None:
        self.is_passed_on = False

    def body(self, data: bytes) -> None:
        """Some more of it."""
        raise NotImplementedError

    def end(self) -> None:
        """It is whole."""
        raise NotImplementedError


class StreamAnswer(Answer):
    """Events, passed on as they come, each one whole: what a dying replica left half said would
    make the error event after it unreadable."""

    __slots__ = ("_account", "_exchange", "_half", "_headers")

    def __init__(self, exchange: Exchange, headers: Headers, account: Account) -> None:
        super().__init__()
        self._exchange = exchange
        self._headers = headers
        self._account = account
        self._half = b""

    def body(self, data: bytes) -> None:
        if not self.is_passed_on:
            self._begin()
        if self._half:
            data, self._half = self._half + data, b""
        if data[-2:] != _BLANK_LINE and data[-4:] != _OTHER_BLANK_LINE:
            data, self._half = _whole_events(data)
            if not data:
                return
        self._exchange.client.send(self._exchange.call.tokens.see(data))

    def end(self) -> None:
        if not self.is_passed_on:
            self._begin()
        self._exchange.answered(self._half)

    def _begin(self) -> None:
        self.is_passed_on = True
        exchange = self._exchange
        exchange.call.tokens.begin(self._headers)
        timing = self._account() if exchange.ticket.was_cold else None
        if not exchange.client.has_started:
            exchange.client.start(_OK, _passed_on(exchange, self._headers, timing))
        elif timing is not None:
            exchange.client.send(b": server-timing %s\n\n" % timing)


class WholeAnswer(Answer):
    """A document or a refusal, kept until it is whole; one that is too large to keep is passed on
    as it comes."""

    __slots__ = ("_account", "_exchange", "_headers", "_parts", "_size", "_status")

    def __init__(self, exchange: Exchange, status: int, headers: Headers, account: Account) -> None:
        super().__init__()
        self._exchange = exchange
        self._status = status
        self._headers = headers
        self._account = account
        self._parts: list[bytes] = []
        self._size = 0

    def body(self, data: bytes) -> None:
        if self.is_passed_on:
            self._exchange.client.send(data)
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > WHOLE_BYTES:
            self._begin(dict(self._headers).get(_LENGTH))
            self._exchange.client.send(b"".join(self._parts))
            self._parts = []

    def end(self) -> None:
        if self.is_passed_on:
            self._exchange.answered()
            return
        parts = self._parts
        whole = parts[0] if len(parts) == 1 else b"".join(parts)
        self._begin(b"%d" % len(whole))
        self._exchange.answered(whole)

    def _begin(self, length: bytes | None) -> None:
        self.is_passed_on = True
        exchange, timing = self._exchange, None
        if self._status == _OK:
            exchange.call.tokens.begin(self._headers)
            timing = self._account() if exchange.ticket.was_cold else None
        headers = _passed_on(exchange, self._headers, timing)
        if length is not None:
            headers.append((_LENGTH, length))
        exchange.client.start(self._status, headers)


class RefusedAnswer(Answer):
    """A refusal after the head of a stream is out: its problem becomes the stream's last event."""

    __slots__ = ("_exchange", "_parts", "_size", "_status")

    def __init__(self, exchange: Exchange, status: int) -> None:
        super().__init__()
        self._exchange = exchange
        self._status = status
        self._parts: list[bytes] = []
        self._size = 0

    def body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= WHOLE_BYTES:
            self._parts.append(data)

    def end(self) -> None:
        body = b"".join(self._parts) if self._size <= WHOLE_BYTES else b""
        self._exchange.failed(ReplicaRefused(problem_of(self._status, body)))


def problem_of(status: int, body: bytes) -> Problem:
    """What a replica that refused a request said."""
    try:
        return Problem.model_validate(orjson.loads(body))
    except (orjson.JSONDecodeError, ValidationError):
        return ReplicaLost(f"the replica answered {status} without saying why").problem()


def _passed_on(exchange: Exchange, headers: Headers, timing: bytes | None) -> list[Header]:
    """What of the replica's headers its client sees, `Server-Timing` being ours if we have one."""
    if timing is None:
        return [header for header in headers if header[0] in _PASSED_ON] + exchange.identity()
    passed = [it for it in headers if it[0] in _PASSED_ON and it[0] != b"server-timing"]
    return [*passed, (b"server-timing", timing), *exchange.identity()]


def _whole_events(data: bytes) -> tuple[bytes, bytes]:
    """Splits after the last whole event."""
    if len(data) > _HALF_EVENT_BYTES:
        return data, b""
    blank_lines = (_BLANK_LINE, _OTHER_BLANK_LINE)
    end = max((data.rfind(it) + len(it) for it in blank_lines if it in data), default=0)
    return data[:end], data[end:]

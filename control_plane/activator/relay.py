"""Carries a request to the replica it has a permit for, and the answer back to its client."""

import asyncio

import orjson
from pydantic import ValidationError

from control_plane.activator.call import Header, ReplicaRefused
from control_plane.activator.cold_start import ReplicaTiming, Try, server_timing
from control_plane.activator.exchange import Exchange
from control_plane.activator.ledger import Ledger
from control_plane.activator.replica_client import (
    ReplicaClient,
    ReplicaGone,
    ReplicaRequest,
    ReplicaResponse,
)
from infra.clock import Clock
from infra.contracts.problem import Problem
from infra.contracts.revision import Revision
from infra.errors import ReplicaLost

# An answer that is not a stream is kept until it is whole, so that another replica can give it
# when this one dies; one that is larger than this goes out as it comes.
WHOLE_BYTES = 1 << 20

# Half an event that is larger than this goes out as it is.
_HALF_EVENT_BYTES = 1 << 20
_BLANK_LINES = (b"\n\n", b"\r\n\r\n")

# How long the end of a cold answer waits for its report: a client may ask for it at once.
_RECORDING_S = 0.25

# The replica does not serve us (any more): draining, or not the one we think it is.
_ELSEWHERE = frozenset({401, 503})
_PASSED_ON = frozenset(
    {b"content-type", b"cache-control", b"retry-after", b"server-timing", b"x-accel-buffering"}
)
_LENGTH = b"content-length"


class Relay:
    """One try of one request; bytes of the body pass untouched.

    Raises ReplicaGone while the client has seen nothing of an answer, so that it can be tried
    again, and ReplicaLost after that.
    """

    def __init__(self, replicas: ReplicaClient, ledger: Ledger, clock: Clock) -> None:
        self._replicas = replicas
        self._ledger = ledger
        self._clock = clock

    async def attempt(self, exchange: Exchange, revision: Revision) -> None:
        """Sends the request to the replica of its permit and relays the whole answer."""
        call, endpoint = exchange.call, exchange.ticket.endpoint
        dispatched_at = self._clock.now()
        timeout_s = exchange.limit_s(revision) - exchange.executed_s()
        request = ReplicaRequest(call.request_id, call.path, call.body, call.tenant, timeout_s)
        try:
            response = await self._replicas.send(endpoint, request)
            try:
                await self._answer(exchange, revision, response, dispatched_at)
            finally:
                response.close()
        except ReplicaGone:
            exchange.tries.append(Try(endpoint, dispatched_at, self._clock.now()))
            raise

    async def _answer(
        self,
        exchange: Exchange,
        revision: Revision,
        response: ReplicaResponse,
        dispatched_at: float,
    ) -> None:
        if response.status in _ELSEWHERE:
            raise ReplicaGone(f"it answered {response.status}")
        exchange.answered(exchange.ticket)
        if exchange.call.is_streaming and response.status == 200:
            await self._stream(exchange, revision, response, dispatched_at)
        elif exchange.client.has_started:
            raise ReplicaRefused(problem_of(response.status, await _everything(response)))
        else:
            await self._whole(exchange, revision, response, dispatched_at)

    async def _stream(
        self,
        exchange: Exchange,
        revision: Revision,
        response: ReplicaResponse,
        dispatched_at: float,
    ) -> None:
        client, tokens = exchange.client, exchange.call.tokens
        data = await response.read()
        tokens.begin(dict(response.headers))
        theirs = _timing(response)
        timing = self._first_token(exchange, revision, dispatched_at, self._clock.now(), theirs)
        if not client.has_started:
            await client.start(200, _headers(exchange, revision, response, timing))
        elif timing is not None:
            await client.send(b": server-timing %s\n\n" % timing)
        half = b""
        try:
            while data:
                whole, half = _whole_events(half + data if half else data)
                if whole:
                    await client.send(tokens.see(whole))
                data = await response.read()
        except ReplicaGone as gone:
            raise _lost(exchange, gone) from gone
        if exchange.recording is not None:
            await _recorded(exchange.recording)
        await client.finish(half)

    async def _whole(
        self,
        exchange: Exchange,
        revision: Revision,
        response: ReplicaResponse,
        dispatched_at: float,
    ) -> None:
        client = exchange.client
        begun, rest = await _beginning(response)
        timing = None
        if response.status == 200:
            exchange.call.tokens.begin(dict(response.headers))
            theirs = _timing(response)
            at = max(dispatched_at, self._clock.now() - theirs.decode)
            timing = self._first_token(exchange, revision, dispatched_at, at, theirs)
        headers = _headers(exchange, revision, response, timing)
        length = dict(response.headers).get(_LENGTH) if rest else b"%d" % len(begun)
        if length is not None:
            headers.append((_LENGTH, length))
        await client.start(response.status, headers)
        if exchange.recording is not None:
            await _recorded(exchange.recording)
        if rest:
            begun = await self._rest(exchange, response, begun)
        await client.finish(begun)

    async def _rest(self, exchange: Exchange, response: ReplicaResponse, data: bytes) -> bytes:
        """Passes on as it comes what is too large to keep; the last part is left to send."""
        try:
            while following := await response.read():
                await exchange.client.send(data)
                data = following
        except ReplicaGone as gone:
            raise _lost(exchange, gone) from gone
        return data

    def _first_token(
        self,
        exchange: Exchange,
        revision: Revision,
        dispatched_at: float,
        at: float,
        theirs: ReplicaTiming,
    ) -> bytes | None:
        """Notes when the first token came; the `Server-Timing` of a cold request."""
        exchange.tries.append(Try(exchange.ticket.endpoint, dispatched_at, at, theirs.parts()))
        if not exchange.ticket.was_cold:
            return None
        return server_timing(self._ledger.enter(exchange, revision)).encode("ascii")


def problem_of(status: int, body: bytes) -> Problem:
    """What a replica that refused a request said."""
    try:
        return Problem.model_validate(orjson.loads(body))
    except (orjson.JSONDecodeError, ValidationError):
        return ReplicaLost(f"the replica answered {status} without saying why").problem()


def _timing(response: ReplicaResponse) -> ReplicaTiming:
    return ReplicaTiming.read(dict(response.headers).get(b"server-timing", b""))


def _headers(
    exchange: Exchange, revision: Revision, response: ReplicaResponse, timing: bytes | None
) -> list[Header]:
    headers = [(name, value) for name, value in response.headers if name in _PASSED_ON]
    if timing is not None:
        headers = [header for header in headers if header[0] != b"server-timing"]
        headers.append((b"server-timing", timing))
    return headers + exchange.identity(revision.name)


def _whole_events(data: bytes) -> tuple[bytes, bytes]:
    """Splits after the last whole event: what a dying replica left half said is not passed on, so
    that the error event after it can be read."""
    if data.endswith(_BLANK_LINES) or len(data) > _HALF_EVENT_BYTES:
        return data, b""
    end = max((data.rfind(it) + len(it) for it in _BLANK_LINES if it in data), default=0)
    return data[:end], data[end:]


async def _beginning(response: ReplicaResponse) -> tuple[bytes, bool]:
    """The body and whether more follows: the whole of it, or what exceeds WHOLE_BYTES."""
    parts: list[bytes] = []
    size = 0
    while data := await response.read():
        parts.append(data)
        size += len(data)
        if size > WHOLE_BYTES:
            return b"".join(parts), True
    return (parts[0] if len(parts) == 1 else b"".join(parts)), False


async def _recorded(recording: asyncio.Task[None]) -> None:
    await asyncio.wait((recording,), timeout=_RECORDING_S)


async def _everything(response: ReplicaResponse) -> bytes:
    body, is_cut = await _beginning(response)
    return b"" if is_cut else body


def _lost(exchange: Exchange, gone: ReplicaGone) -> ReplicaLost:
    replica_id = exchange.ticket.endpoint.replica_id
    return ReplicaLost(
        f"the replica broke off in the middle of its answer: {gone}",
        hint="send the request again",
        replica_id=replica_id,
    )

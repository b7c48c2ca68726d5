"""What the replica answers at which address, as a raw ASGI application."""

import asyncio
import hmac
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any, Protocol

import orjson
import structlog

from infra.bounded_http import OUTLET
from infra.clock import Clock
from infra.contracts.generation import JsonObject
from infra.errors import MethodNotAllowed, NotFound, PlatformError, Unauthorized
from infra.generation_requests import json_object
from worker.server import chat, completions, invoke, metrics, problems
from worker.server.asked import Asked
from worker.server.body import Headers, Receive, read_body
from worker.server.embeddings import EmbeddingService
from worker.server.in_flight import Disconnected, InFlight, Interruption
from worker.server.plan import Caller
from worker.server.ports import Engine
from worker.server.responder import Responder, Send
from worker.server.service import GenerationService

log = structlog.get_logger()

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")

_TENANT = re.compile(rb"[a-z0-9-]{1,63}")
_SECONDS = re.compile(rb"[0-9]{1,7}(?:\.[0-9]{1,3})?")

Scope = MutableMapping[str, Any]

GENERATE: dict[str, Callable[[JsonObject], Asked]] = {
    "/v1/chat/completions": chat.read,
    "/v1/completions": completions.read,
    "/invoke": invoke.read,
}


class Answer(Protocol):
    """Answers a POST whose body is a JSON object; raises PlatformError before or after the head."""

    def __call__(
        self,
        data: JsonObject,
        request_id: str,
        responder: Responder,
        *,
        arrived: float,
        caller: Caller,
    ) -> Awaitable[None]: ...


class Routes:
    """The ASGI application; everything but `/healthz` wants the bearer token."""

    def __init__(
        self,
        generation: GenerationService,
        embeddings: EmbeddingService,
        engine: Engine,
        in_flight: InFlight,
        *,
        token: str,
        most_body_bytes: int,
        clock: Clock,
    ) -> None:
        self._answers: dict[str, Answer] = {
            path: partial(_generate, generation, read) for path, read in GENERATE.items()
        }
        self._answers["/v1/embeddings"] = embeddings.serve
        self._engine = engine
        self._in_flight = in_flight
        self._authorization = f"Bearer {token}".encode()
        self._most_body_bytes = most_body_bytes
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        responder = Responder(send, scope["path"], scope["extensions"][OUTLET])
        try:
            await self._route(scope, receive, responder)
        except Exception as error:
            await _fail(responder, error)

    async def _route(self, scope: Scope, receive: Receive, responder: Responder) -> None:
        path, method = scope["path"], scope["method"]
        headers: Headers = dict(scope["headers"])
        if path == "/healthz":
            _allow(method, "GET", "HEAD")
            return await self._health(responder)
        self._authorise(headers)
        if path == "/metrics":
            _allow(method, "GET", "HEAD")
            return await self._metrics(responder)
        if (answer := self._answers.get(path)) is None:
            raise NotFound(f"there is nothing at {path[:200]}")
        _allow(method, "POST")
        return await self._answer(answer, headers, receive, responder)

    def _authorise(self, headers: Headers) -> None:
        given = headers.get(b"authorization", b"")
        if not hmac.compare_digest(given, self._authorization):
            raise Unauthorized("the bearer token is missing or wrong")

    async def _health(self, responder: Responder) -> None:
        is_draining = self._in_flight.is_draining
        body = orjson.dumps({"status": "draining" if is_draining else "ready"})
        await responder.whole(body, status=503 if is_draining else 200)

    async def _metrics(self, responder: Responder) -> None:
        body = metrics.exposition(self._engine.stats, in_flight=len(self._in_flight))
        await responder.whole(body, content_type=metrics.CONTENT_TYPE)

    async def _answer(
        self,
        answer: Answer,
        headers: Headers,
        receive: Receive,
        responder: Responder,
    ) -> None:
        """In flight until the answer, or what is said instead of it, has left."""
        arrived = self._clock.now()
        interruption = self._in_flight.enter()
        try:
            with interruption:
                body = await read_body(receive, headers, most_bytes=self._most_body_bytes)
                watch = asyncio.create_task(_watch(receive, interruption))
                try:
                    data, request_id = json_object(body), _request_id(headers)
                    await answer(
                        data, request_id, responder, arrived=arrived, caller=_caller(headers)
                    )
                finally:
                    watch.cancel()
        except Exception as error:
            await _fail(responder, error)
        finally:
            self._in_flight.leave(interruption)


async def _generate(
    service: GenerationService,
    read: Callable[[JsonObject], Asked],
    data: JsonObject,
    request_id: str,
    responder: Responder,
    *,
    arrived: float,
    caller: Caller,
) -> None:
    await service.serve(read(data), request_id, responder, arrived=arrived, caller=caller)


async def _watch(receive: Receive, interruption: Interruption) -> None:
    """After the body there is nothing to receive but the news that the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    interruption.interrupt(Disconnected())


async def _fail(responder: Responder, error: Exception) -> None:
    match error:
        case Disconnected():
            pass
        case MethodNotAllowed():
            await responder.problem(error, ((b"allow", error.facts["allow"].encode()),))
        case PlatformError():
            await responder.problem(error)
        case _:
            log.error("request.failed", exc_info=error)
            await responder.problem(problems.unexpected())


def _request_id(headers: Headers) -> str:
    """The gateway's name for the request, so that the answer carries it; else one of our own."""
    given = headers.get(b"firstlight-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _caller(headers: Headers) -> Caller:
    """What the gateway says of its own caller; others speak for themselves."""
    tenant = headers.get(b"firstlight-tenant", b"")
    timeout_s = headers.get(b"firstlight-timeout", b"")
    deadline = None
    if _SECONDS.fullmatch(timeout_s):
        deadline = asyncio.get_running_loop().time() + float(timeout_s)
    return Caller(tenant.decode() if _TENANT.fullmatch(tenant) else "", deadline)


def _allow(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise MethodNotAllowed(f"{method[:32]} is not allowed here", allow=", ".join(allowed))

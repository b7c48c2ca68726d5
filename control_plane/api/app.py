"""The whole HTTP surface: connections that answer hot requests, and FastAPI for all others."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from uvicorn.config import Config
from uvicorn.server import ServerState

from control_plane.api import problems
from control_plane.api.auth import IDENTITY, KeyRing
from control_plane.api.callers import Callers
from control_plane.api.documentation import document
from control_plane.api.gauges import register_gauges, requests_counter
from control_plane.api.hot import HotPath
from control_plane.api.hot_http import DateLine, HotHttp
from control_plane.api.hot_request import CLIENT_LEFT
from control_plane.api.inference.routes import inference_router
from control_plane.api.intake import ClientGone
from control_plane.api.job_desk import JobDesk
from control_plane.api.jobs import jobs_router
from control_plane.api.models import models_router
from control_plane.api.nodes import nodes_router
from control_plane.api.operations import operations_router
from control_plane.api.releases import releases_router
from control_plane.api.services import Services
from control_plane.api.tenants import tenants_router
from control_plane.tenancy.keys import Keys
from infra.errors import (
    BodyTooLarge,
    Invalid,
    MalformedJson,
    MethodNotAllowed,
    NotFound,
    PlatformError,
)
from infra.generation_requests import invalid
from infra.metrics import Counter
from infra.outbox import Outbox

Scope = dict[str, Any]
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_OPEN = frozenset(
    {
        *("/healthz", "/readyz", "/v2", "/v2/health/live", "/v2/health/ready"),
        *("/docs", "/redoc", "/openapi.json", "/problems"),
    }
)
_PUBLIC_PREFIXES = ("/v1/", "/v2/models/")
_INTERNAL_PREFIX = "/internal/"
MOST_BODY_BYTES = 16 << 20


@dataclass(frozen=True)
class Edge:
    """What a server serves: `app` is for the requests that `connection` does not answer itself."""

    hot: HotPath
    app: AsgiApp
    dated: DateLine
    outbox: Outbox

    def connection(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> HotHttp:
        """What uvicorn calls its `http` protocol class."""
        return HotHttp(self.hot, self.dated, self.outbox, config, server_state, app_state)


def create_edge(services: Services) -> Edge:
    """Everything it needs comes with `services`; its lifespan does nothing."""
    register_gauges(services)
    requests = requests_counter(services)
    hot = HotPath(
        services.deployments,
        services.activator,
        Callers(services.keys, services.quotas, services.usage, services.check_lead),
        JobDesk(services.jobs, services.check_webhook),
        requests,
        services.clock,
    )
    app = Gate(
        management_app(services, requests), services.keys, services.node_keys, services.check_lead
    )
    return Edge(hot, app, DateLine(), Outbox())


class Gate:
    """Lets requests to the management app whose key was checked.

    What is below /v1 and /v2/models is answered by the control plane that leads: the others do not
    know what is deployed, and start nothing.
    """

    def __init__(
        self, management: AsgiApp, keys: Keys, node_keys: KeyRing, check_lead: Callable[[], None]
    ) -> None:
        self._management = management
        self._keys = keys
        self._node_keys = node_keys
        self._check_lead = check_lead

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                if scope["path"].startswith(_PUBLIC_PREFIXES):
                    self._check_lead()
                self._check(scope)
            except PlatformError as error:
                return await _refuse(error, scope, send)
            receive = _bounded(receive)
        return await self._management(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Notes who calls; raises Unauthorized, or BodyTooLarge where Content-Length tells."""
        path: str = scope["path"]
        headers = dict(scope["headers"])
        authorization = headers.get(b"authorization")
        if path.startswith(_INTERNAL_PREFIX):
            self._node_keys.check(authorization)
        elif path not in _OPEN and not path.startswith("/problems/"):
            scope.setdefault("state", {})[IDENTITY] = self._keys.identify(authorization)
        if int(headers.get(b"content-length", b"0")) > MOST_BODY_BYTES:
            raise _too_large()


def management_app(services: Services, requests: Counter) -> FastAPI:
    """Everything that is not hot."""
    app = FastAPI(
        title="Firstlight",
        description="Serverless inference: models that nobody calls cost nothing.",
        version="1",
        redirect_slashes=False,
    )
    app.include_router(models_router(services))
    app.include_router(inference_router(services))
    app.include_router(releases_router(services, requests))
    app.include_router(jobs_router(services))
    app.include_router(operations_router(services))
    app.include_router(nodes_router(services))
    app.include_router(tenants_router(services))
    app.add_exception_handler(PlatformError, _platform_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientGone, _client_gone)
    app.add_exception_handler(Exception, _unexpected)
    document(app)
    return app


def _rendered(request: Request, error: PlatformError) -> Response:
    answer = problems.response(error, path=request.url.path)
    response = Response(answer.body, status_code=answer.status)
    response.raw_headers = list(answer.headers)
    return response


async def _platform_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PlatformError)
    return _rendered(request, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = error.errors()
    if details[0]["type"] == "json_invalid":
        return _rendered(request, MalformedJson(f"the body is not JSON: {details[0]['msg']}"))
    if isinstance(error.body, bytes):  # it was not read as JSON: pages elsewhere may send it so
        hint = "send the header Content-Type: application/json"
        return _rendered(request, Invalid("the body is not said to be JSON", hint=hint))
    within = [{**detail, "loc": detail["loc"][1:]} for detail in details]
    is_body = details[0]["loc"][0] == "body"
    return _rendered(request, invalid(within, error.body if is_body else {}))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    match error:
        case HTTPException(__cause__=PlatformError() as cause):
            return _rendered(request, cause)
        case HTTPException(status_code=404):
            nothing = NotFound("there is nothing at this address", hint="see /docs")
            return _rendered(request, nothing)
        case HTTPException(status_code=405):
            allowed = (error.headers or {}).get("Allow", "").split(", ")
            sentence = f"{request.method} is not possible here"
            return _rendered(request, MethodNotAllowed(sentence, allowed=allowed))
        case _:
            return _rendered(request, Invalid(str(error.detail)))


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _unexpected(request: Request, error: Exception) -> Response:
    return _rendered(request, problems.unexpected())


async def _refuse(error: PlatformError, scope: Scope, send: Send) -> None:
    answer = problems.response(error, path=scope["path"])
    head = {"type": "http.response.start", "status": answer.status, "headers": answer.headers}
    await send(head)
    await send({"type": "http.response.body", "body": answer.body})


def _bounded(receive: Receive) -> Receive:
    """Raises BodyTooLarge when a body turns out larger than any management request is."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MOST_BODY_BYTES:
            raise _too_large()
        return message

    return bounded


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"the body has more than {MOST_BODY_BYTES} bytes", limit=MOST_BODY_BYTES)

"""The hot path: a generation request from its first byte to the activator, below any framework."""

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import Any

import structlog

from control_plane.activator.activator import Activator
from control_plane.activator.call import Call, ReplicaRefused
from control_plane.api import problems
from control_plane.api.affinity import affinity_of, session_of
from control_plane.api.asgi_client import (
    AsgiDownstream,
    Receive,
    Scope,
    Send,
    WhileConnected,
    departure_of,
)
from control_plane.api.callers import Callers, Visit
from control_plane.api.generation import (
    model_not_found,
    refuse_what_cannot_fit,
)
from control_plane.api.intake import ClientGone, IncomingBody, Intake
from control_plane.api.job_desk import JobDesk
from control_plane.api.patience import patience_of
from control_plane.deployments.service import Deployments
from control_plane.deployments.store import Change
from infra.clock import Clock
from infra.contracts.base import ModelName, RequestId
from infra.contracts.generation import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationBody,
    InvokeRequest,
)
from infra.contracts.model_spec import Limits
from infra.contracts.revision import Revision
from infra.errors import MethodNotAllowed, PlatformError
from infra.generation_requests import read_request
from infra.metrics import Counter

log = structlog.get_logger()

CLIENT_LEFT = 499
LINGER_S = 2.0
_INVOKE_PREFIX, _INVOKE_SUFFIX = "/v1/models/", "/invoke"


@dataclass(frozen=True, slots=True)
class Target:
    """What a path means: a contract, the replica's path for it, the model if the path names it."""

    contract: type[GenerationBody]
    replica_path: str
    model: str | None = None


_TARGETS = {
    "/v1/chat/completions": Target(ChatCompletionRequest, "/v1/chat/completions"),
    "/v1/completions": Target(CompletionRequest, "/v1/completions"),
}


def target_of(path: str) -> Target | None:
    """The hot target of a path; None for every other path."""
    target = _TARGETS.get(path)
    if target is None and path.endswith(_INVOKE_SUFFIX) and path.startswith(_INVOKE_PREFIX):
        model = path[len(_INVOKE_PREFIX) : -len(_INVOKE_SUFFIX)]
        return Target(InvokeRequest, "/invoke", model) if "/" not in model else None
    return target


class HotPath:
    """Auth, bounded body, JSON, contract, model, what can never fit: then the activator.

    Whatever is wrong is told as a problem before anything is held, allocated or woken.
    """

    def __init__(
        self,
        deployments: Deployments,
        activator: Activator,
        callers: Callers,
        desk: JobDesk,
        requests: Counter,
        clock: Clock,
    ) -> None:
        self._deployments = deployments
        self._activator = activator
        self._callers = callers
        self._desk = desk
        self._requests = requests
        self._clock = clock
        self._intake = Intake()
        self._most_body_bytes = Limits().max_body_bytes
        deployments.subscribe(self._deployment_changed)
        self._measure_limits()

    async def __call__(self, target: Target, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        arrived_at = self._clock.now()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        body = IncomingBody(
            receive,
            self._intake,
            headers.get(b"content-length"),
            most_bytes=self._most_body_bytes,
        )
        client = AsgiDownstream(send)
        request_id = RequestId(f"req_{os.urandom(12).hex()}")
        request = _Request(target, scope, headers, receive, body, client, arrived_at, request_id)
        try:
            await self._answer(request)
        except ClientGone:
            request.outcome = CLIENT_LEFT
        except (PlatformError, ReplicaRefused) as error:
            await self._refuse(request, error)
        except Exception:
            log.exception("request.failed", request_id=request.request_id, path=scope["path"])
            await self._refuse(request, problems.unexpected())
        finally:
            request.body.let_go()
            self._requests.add(request.model, str(request.outcome or request.client.status))

    async def _answer(self, request: "_Request") -> None:
        if request.scope["method"] != "POST":
            raise MethodNotAllowed("only POST is possible here", allowed=["POST"])
        with self._callers.visit(request.headers.get(b"authorization")) as visit:
            if request.target.model is not None:  # then much can be refused before it is read
                revision = self._revision(request.target.model, visit)
                request.body.bound(revision.spec.limits.max_body_bytes)
            call, revision = self._accept(request, await request.body.read(), visit)
            if self._desk.wants_job(request.headers):
                await self._desk.accept(call, revision, request.headers, request.client)
                return
            departure = departure_of(request.scope, request.receive)
            with WhileConnected(departure, request.client) as connected:
                await self._activator.serve(call, revision, request.client)
            if connected.has_left:
                raise ClientGone

    def _accept(self, request: "_Request", content: bytes, visit: Visit) -> tuple[Call, Revision]:
        """The body as a call; what it was parsed into is gone when this returns."""
        target = request.target
        asked: Any = read_request(target.contract, content)
        revision = self._pick(request, asked.model if target.model is None else target.model, visit)
        request.model = visit.model = revision.model
        refuse_what_cannot_fit(asked, len(content), revision)
        request.is_streaming = asked.is_streaming
        call = Call(
            request_id=request.request_id,
            path=target.replica_path,
            body=content,
            is_streaming=asked.is_streaming,
            wants_progress=request.headers.get(b"firstlight-progress", b"").lower() == b"true",
            arrived_at=request.arrived_at,
            tenant=visit.identity.tenant,
            tokens=visit.tokens,
            priority=asked.priority or 0,
            patience=patience_of(request.headers),
            affinity=affinity_of(request.headers, content, visit.identity.tenant),
        )
        return call, revision

    async def _refuse(self, request: "_Request", error: PlatformError | ReplicaRefused) -> None:
        """Says what is wrong in the way that is left: a response, a last event, or the cut of an
        answer whose length was promised."""
        client = request.client
        problem_status = _status(error)
        request.outcome = problem_status
        if problem_status >= 500:
            log.warning("request.refused", request_id=request.request_id, error=str(error))
        if isinstance(error, ReplicaRefused) or client.has_started:
            if request.is_streaming:
                await client.finish(problems.event(error))
            return
        answer = problems.response(error, path=request.scope["path"])
        headers = [*answer.headers, (b"firstlight-request-id", request.request_id.encode())]
        if request.body.is_whole or request.body.is_small:
            await client.start(answer.status, headers)
            await client.finish(answer.body)
        else:
            await client.start(answer.status, [*headers, (b"connection", b"close")])
            await client.send(answer.body)
            await _linger(request.body)
            await client.finish()

    def _pick(self, request: "_Request", name: str, visit: Visit) -> Revision:
        """The revision that serves this request, of those that the model's traffic is split to."""
        model = self._revision(name, visit).model
        revision = self._deployments.pick(model, session_of(request.headers, visit.identity.tenant))
        assert revision is not None, "the model is deployed"
        return revision

    def _revision(self, name: str, visit: Visit) -> Revision:
        revision = self._deployments.get(ModelName(name))
        if revision is None or not visit.identity.may_call(revision):
            known = filter(visit.identity.may_call, self._deployments.all())
            raise model_not_found(name, (one.model for one in known))
        return revision

    def _deployment_changed(self, change: Change) -> None:
        self._measure_limits()

    def _measure_limits(self) -> None:
        """A body that some model would take is not refused before its model is known."""
        limits = [it.spec.limits.max_body_bytes for it in self._deployments.in_traffic()]
        self._most_body_bytes = max(limits, default=Limits().max_body_bytes)


@dataclass(eq=False, slots=True)
class _Request:
    """One request on the hot path; `outcome` is its status code where the response's is not."""

    target: Target
    scope: Scope
    headers: dict[bytes, bytes]
    receive: Receive
    body: IncomingBody
    client: AsgiDownstream
    arrived_at: float
    request_id: RequestId
    model: str = ""
    is_streaming: bool = False
    outcome: int = 0


def _status(error: PlatformError | ReplicaRefused) -> int:
    if isinstance(error, ReplicaRefused):
        return error.problem.status
    return error.status.value


async def _linger(body: IncomingBody) -> None:
    """Reads on for a moment: closing on unread bytes would reset the connection, and the client
    might lose the answer (RFC 9112, section 9.6)."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            await body.discard()

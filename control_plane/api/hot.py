"""The hot path: what is done with a generation request from its head to the activator."""

import os
from functools import partial
from itertools import count

import structlog

from control_plane.activator.activator import Activator
from control_plane.activator.call import Call, ReplicaRefused, TokenCount
from control_plane.api import problems
from control_plane.api.affinity import prompt_of, session_of
from control_plane.api.callers import Callers
from control_plane.api.generation import (
    Bounds,
    model_not_found,
    refuse_what_cannot_fit,
    sequences_of,
)
from control_plane.api.hot_request import HotRequest
from control_plane.api.intake import Body, Intake
from control_plane.api.job_desk import JobDesk
from control_plane.api.patience import patience_of
from control_plane.api.translation import Question
from control_plane.deployments.service import Deployments
from control_plane.deployments.store import Change
from control_plane.tenancy.identity import Identity
from infra.clock import Clock
from infra.contracts.base import ModelName, RequestId, RevisionName
from infra.contracts.model_spec import Limits
from infra.contracts.revision import Revision
from infra.errors import MethodNotAllowed, PlatformError, RevisionNotFound, ShuttingDown
from infra.generation_requests import read_given
from infra.metrics import Counter

log = structlog.get_logger()


class HotPath:
    """The Desk of hot requests: auth, bounded body, JSON, contract, model, what can never fit; then
    the activator.

    Whatever is wrong is told as a problem before anything is held, allocated or woken.
    """

    def __init__(
        self,
        deployments: Deployments,
        activator: Activator,
        callers: Callers,
        jobs: JobDesk,
        requests: Counter,
        clock: Clock,
    ) -> None:
        self._deployments = deployments
        self._activator = activator
        self._callers = callers
        self._jobs = jobs
        self._requests = requests
        self._clock = clock
        self._prefix = f"req_{os.urandom(8).hex()}"  # of the ids of this process's requests
        self._numbers = count()
        self.intake = Intake()
        self._most_body_bytes = Limits().max_body_bytes
        self._bounds: dict[RevisionName, Bounds] = {}
        deployments.subscribe(self._deployment_changed)
        self._measure_limits()

    # -- the request ---------------------------------------------------------------------------

    def open(self, request: HotRequest) -> None:
        """See Desk."""
        now = request.arrived_at = self._clock.now()
        request.request_id = RequestId(f"{self._prefix}{next(self._numbers)}")
        body = request.body = Body(self.intake, request.headers.get(b"content-length"))
        try:
            if request.method != b"POST":
                raise MethodNotAllowed("only POST is possible here", allowed=["POST"])
            caller = request.caller = self._callers.enter(
                request.headers.get(b"authorization"), now=now
            )
            request.most_bytes = self._most_body_bytes
            if (model := request.target.model) is not None:  # then it sets the bound
                request.most_bytes = self._revision(model, caller).spec.limits.max_body_bytes
            body.expect(most_bytes=request.most_bytes)
        except Exception as error:
            self.fail(request, error)

    def answer(self, request: HotRequest) -> None:
        """See Desk."""
        try:
            question = self._translated(request)
            call, revision = self._accept(request, question)
            headers, request.headers = request.headers, {}
            if question is not None:
                client = question.answer(request, revision)
                request.exchange = self._activator.begin(call, revision, client)
                return
            if b"prefer" in headers and self._jobs.wants_job(headers):
                self._jobs.accept(call, revision, headers, request, partial(self.fail, request))
                return
            request.exchange = self._activator.begin(call, revision, request)
        except Exception as error:
            self.fail(request, error)

    def _translated(self, request: HotRequest) -> Question | None:
        """What a request of another protocol asks in the words of a contract of ours."""
        translation, model = request.target.translation, request.target.model
        if translation is None:
            return None
        assert request.body is not None and model is not None, "it was opened, and names its model"
        return translation(model, request.body.whole(), request.headers)

    def _accept(self, request: HotRequest, question: Question | None) -> tuple[Call, Revision]:
        """The body as a call; what it was parsed into is gone when this returns."""
        caller, target, headers = request.caller, request.target, request.headers
        assert request.body is not None and caller is not None, "it was opened"
        content = request.body.whole() if question is None else question.content
        given = read_given(target.contract, content)
        tenant = caller.tenant
        session = session_of(headers, tenant)
        leading = self._revision(given["model"] if target.model is None else target.model, caller)
        revision = self._deployments.pick(leading.model, session)
        assert revision is not None, "the model is deployed"
        if target.version is not None:
            revision = self._version(leading.model, target.version)
        bounds = self._bounds.get(revision.name)
        if bounds is None:
            bounds = self._bounds[revision.name] = Bounds(revision)
        request.model = bounds.model
        request.revision = bounds.name
        refuse_what_cannot_fit(target.contract, given, len(content), bounds)
        tokens = request.tokens = TokenCount()
        is_streaming = request.is_streaming = given.get("stream") is True
        call = Call(
            request.request_id,
            target.replica_path,
            content,
            is_streaming,
            is_streaming and headers.get(b"firstlight-progress", b"").lower() == b"true",
            request.arrived_at,
            tenant,
            tokens,
            given.get("priority") or 0,
            patience_of(headers),
            prompt_of(content, tenant) if session is None else session,
            sequences_of(target.contract, given),
        )
        return call, revision

    # -- its end -------------------------------------------------------------------------------

    def fail(self, request: HotRequest, error: Exception) -> None:
        """See Desk: says what is wrong in the way that is left: a response, a last event, or the
        cut of an answer whose length was promised."""
        if not isinstance(error, PlatformError | ReplicaRefused):
            log.error(
                "request.failed", request_id=request.request_id, path=request.path, exc_info=error
            )
            error = problems.unexpected()
        status = _status(error)
        if status >= 500:
            say = log.info if isinstance(error, ShuttingDown) else log.warning
            say("request.refused", request_id=request.request_id, error=str(error))
        self.settle(request, status)
        if isinstance(error, ReplicaRefused) or request.has_started:
            if request.is_streaming:
                request.finish(problems.event(error, path=request.path))
            else:
                request.cut()
            return
        answer = problems.response(error, path=request.path)
        identity = (b"firstlight-request-id", request.request_id.encode())
        request.refuse(answer.status, [*answer.headers, identity], answer.body)

    def settle(self, request: HotRequest, outcome: int) -> None:
        """See Desk."""
        body, request.body = request.body, None
        if body is None:
            return
        body.let_go()
        caller, request.caller = request.caller, None
        if caller is not None:
            self._callers.leave(caller, request.model, request.tokens)
        self._requests.add(request.model or "", request.revision or "", str(outcome))

    # -- models --------------------------------------------------------------------------------

    def _revision(self, name: str, caller: Identity) -> Revision:
        """The one that speaks for the model."""
        revision = self._deployments.get(ModelName(name))
        if revision is None or not caller.may_call(revision):
            known = filter(caller.may_call, self._deployments.all())
            raise model_not_found(name, (one.model for one in known))
        return revision

    def _version(self, model: ModelName, number: str) -> Revision:
        """One that gets requests; raises RevisionNotFound."""
        revision = self._deployments.live(RevisionName(f"{model}@{number}"))
        if revision is None:
            raise RevisionNotFound(
                f"no version {number[:64]!r} of {model} is in traffic",
                hint=f"GET /v2/models/{model} lists those that are",
            )
        return revision

    def _deployment_changed(self, change: Change) -> None:
        self._bounds.clear()
        self._measure_limits()

    def _measure_limits(self) -> None:
        """A body that some model would take is not refused before its model is known."""
        limits = [it.spec.limits.max_body_bytes for it in self._deployments.in_traffic()]
        self._most_body_bytes = max(limits, default=Limits().max_body_bytes)


def _status(error: PlatformError | ReplicaRefused) -> int:
    if isinstance(error, ReplicaRefused):
        return error.problem.status
    return error.status.value

"""Routes of deployed models: deploy, show, delete, their cold starts and their logs."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal, cast

import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from control_plane.api.auth import Caller
from control_plane.api.intake import Body, Intake, read_body
from control_plane.api.ownership import Name, owned
from control_plane.api.services import Services
from control_plane.api.views import (
    ColdStartList,
    ModelList,
    NodeList,
    model_explanation,
    model_list,
    model_status,
    node_status,
)
from control_plane.fleet.logbook import Logbook, LogEntry
from infra.contracts.base import ModelName, RequestId
from infra.contracts.explanation import ModelExplanation
from infra.contracts.model_spec import ModelSpec
from infra.contracts.revision import ModelStatus
from infra.errors import MalformedJson, SpecInvalid
from infra.generation_requests import json_object
from infra.spec_file import load_spec, validate_spec

MOST_SPEC_BYTES = 256 << 10
YAML_TYPES = frozenset(
    {"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "application/vnd.yaml"}
)
NDJSON = "application/x-ndjson"

_SPEC_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/ModelSpec"}},
            "application/yaml": {"schema": {"$ref": "#/components/schemas/ModelSpec"}},
        },
    }
}


def models_router(services: Services) -> APIRouter:
    """The routes below /v1 that are not generation."""
    router = APIRouter(prefix="/v1", tags=["models"])
    intake = Intake(most_bytes=64 * MOST_SPEC_BYTES)

    @router.get("/models")
    async def list_models(request: Request, caller: Caller) -> ModelList:
        """Every model of the caller's, and those that others share, in OpenAI's form."""
        return model_list(services, caller, base_url=str(request.base_url))

    @router.get("/models/{name}")
    async def show_model(name: Name, request: Request, caller: Caller) -> ModelStatus:
        """How a model stands, and why."""
        return model_status(services, owned(services, name, caller), base_url=str(request.base_url))

    @router.get("/models/{name}/explain")
    async def explain_model(
        name: Name, caller: Caller, last: Annotated[int, Query(ge=1, le=64)] = 20
    ) -> ModelExplanation:
        """Why a model is where it is: what was learnt of it, and the last decisions about it."""
        return model_explanation(services, owned(services, name, caller), last=last)

    @router.put("/models/{name}", status_code=202, openapi_extra=_SPEC_BODY)
    async def deploy_model(
        name: Name,
        request: Request,
        response: Response,
        caller: Caller,
        traffic: bool | Literal["unless-served"] = True,
    ) -> ModelStatus:
        """Deploys a spec: it becomes an immutable revision, which gets every new request, or with
        `traffic=false` none until the traffic is split; with `unless-served`, none where replicas
        of another revision serve the model's requests now.

        An equal spec of equal content changes nothing else. The body is `model.yaml`, or the same
        as JSON.
        """
        body = Body(intake, request.headers.get("content-length", "").encode())
        try:
            content = await read_body(request.receive, body, most_bytes=MOST_SPEC_BYTES)
            spec = _spec(content, request.headers.get("content-type", ""))
        finally:
            body.let_go()
        if spec.name != name:
            raise _other_name(name, spec)
        revision = await services.deployments.deploy(
            spec,
            by=caller,
            takes_traffic=not _is_served(services, name) if traffic == "unless-served" else traffic,
            now=services.clock.now(),
        )
        response.headers["Location"] = f"/v1/models/{name}"
        return model_status(services, revision, base_url=str(request.base_url))

    @router.delete("/models/{name}", status_code=204)
    async def delete_model(name: Name, caller: Caller) -> None:
        """Takes a model away: who waits for it is told, its replicas finish and stop."""
        owned(services, name, caller)
        now = services.clock.now()
        await services.deployments.delete(name, now=now)
        await services.ledger.forget(name, now=now)

    @router.get("/models/{name}/coldstarts")
    async def list_cold_starts(
        name: Name,
        caller: Caller,
        last: Annotated[int, Query(ge=1, le=1000)] = 20,
        request_id: Annotated[RequestId | None, Query(max_length=128)] = None,
    ) -> ColdStartList:
        """Where the time of the last cold requests went, or of one of them."""
        owned(services, name, caller)
        if request_id is None:
            return ColdStartList(data=list(await services.ledger.last(name, last)))
        report = await services.ledger.find(name, request_id)
        return ColdStartList(data=[] if report is None else [report])

    @router.get(
        "/models/{name}/logs",
        response_class=StreamingResponse,
        responses={200: {"content": {NDJSON: {}}}},
    )
    async def read_logs(
        name: Name,
        caller: Caller,
        follow: bool = False,
        last: Annotated[int, Query(ge=0, le=2000)] = 100,
    ) -> Response:
        """The newest lines of a model's log as JSON lines; with `follow`, more as they come."""
        owned(services, name, caller)
        if follow:
            lines = _followed(services.logbook, name, last)
            return StreamingResponse(lines, media_type=NDJSON)
        entries = services.logbook.last(name, last)
        return Response(b"".join(map(_line, entries)), media_type=NDJSON)

    @router.get("/nodes", tags=["nodes"])
    async def list_nodes(caller: Caller) -> NodeList:
        """Every registered node and its standby; an admin's affair."""
        caller.require_admin()
        return NodeList(data=[node_status(services, node) for node in services.fleet.nodes()])

    return router


def _spec(body: bytes, content_type: str) -> ModelSpec:
    if content_type.partition(";")[0].strip().lower() not in YAML_TYPES:
        return validate_spec(json_object(body), filename="the body")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise MalformedJson(f"the body is not UTF-8: {error.reason}", offset=error.start) from None
    return load_spec(text, filename="the body")


def _is_served(services: Services, name: ModelName) -> bool:
    release = services.deployments.release(name)
    revisions = () if release is None else release.revisions
    return any(services.fleet.counts(revision.name).ready for revision in revisions)


def _other_name(name: str, spec: ModelSpec) -> SpecInvalid:
    message = f"is {spec.name}; the address says {name}"
    return SpecInvalid(
        f"name: {message}",
        errors=[
            {"line": None, "column": None, "path": "name", "message": message, "suggestion": None}
        ],
    )


async def _followed(logbook: Logbook, name: ModelName, last: int) -> AsyncIterator[bytes]:
    following = cast(AsyncGenerator[LogEntry, None], logbook.follow(name, last=last))
    async with aclosing(following) as entries:
        async for entry in entries:
            yield _line(entry)


def _line(entry: LogEntry) -> bytes:
    return orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)

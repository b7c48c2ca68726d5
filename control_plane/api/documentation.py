"""The OpenAPI description of everything, the hot routes included, which FastAPI does not serve."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from control_plane.api.asynchronous import (
    DEFAULT_ATTEMPTS,
    DEFAULT_DEADLINE_S,
    MOST_ATTEMPTS,
    MOST_DEADLINE_S,
    MOST_KEY_CHARACTERS,
)
from infra.contracts.embeddings import EmbeddingsRequest
from infra.contracts.generation import (
    ChatCompletionRequest,
    CompletionRequest,
    InvokeEvent,
    InvokeRequest,
    InvokeResponse,
)
from infra.contracts.inference import (
    GenerateRequest,
    GenerateResponse,
    InferenceRequest,
    InferenceResponse,
)
from infra.contracts.job import JobStatus
from infra.contracts.model_spec import ModelSpec
from infra.contracts.openai import ChatCompletion, ChatCompletionChunk, Completion, Embeddings
from infra.contracts.problem import Problem

_REF = "#/components/schemas/{model}"

_HEADERS = {
    "Firstlight-Request-Id": "Names the request, in logs and in its cold-start report.",
    "Firstlight-Revision": "The revision that answered.",
    "Firstlight-Cold-Start": "`true` when the request waited for a replica to start.",
    "Server-Timing": "Where the time to the first token went, in milliseconds.",
}
_ASKED_HEADERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "Firstlight-Progress",
        "`true`: a held stream begins at once, with comments that tell how far the start of a "
        "replica has come.",
        {"type": "string", "enum": ["true"]},
    ),
    (
        "Firstlight-Session",
        "A name of the caller's own: requests of one session go to one revision, and to one "
        "replica while it has room.",
        {"type": "string", "maxLength": 256},
    ),
    (
        "Firstlight-Wait-Timeout",
        "Seconds to be held at most, whether no replica is ready or all are busy; a job waits by "
        "its own deadline.",
        {"type": "number", "exclusiveMinimum": 0},
    ),
    (
        "Firstlight-Cold-Start-Timeout",
        "Seconds to wait at most while no replica is ready, if fewer than the model's "
        "`timeouts.cold_start`; a job waits by its own deadline.",
        {"type": "number", "exclusiveMinimum": 0},
    ),
    (
        "Firstlight-Timeout",
        "Seconds at replicas at most, if fewer than the model's `timeouts.execution`; a job has "
        "its own deadline.",
        {"type": "number", "exclusiveMinimum": 0},
    ),
    (
        "Prefer",
        "`respond-async`: the request becomes a job, answered 202 once it is on disk.",
        {"type": "string"},
    ),
    (
        "Idempotency-Key",
        "Of a job: sent again within a day, it gives the same job.",
        {"type": "string", "maxLength": MOST_KEY_CHARACTERS},
    ),
    (
        "Firstlight-Deadline",
        "Of a job: seconds after which it expires.",
        {"type": "number", "maximum": MOST_DEADLINE_S, "default": DEFAULT_DEADLINE_S},
    ),
    (
        "Firstlight-Max-Attempts",
        "Of a job: executions that may fail before it is a dead letter.",
        {"type": "integer", "maximum": MOST_ATTEMPTS, "default": DEFAULT_ATTEMPTS},
    ),
    (
        "Firstlight-Webhook",
        "Of a job: https address that is told of its end.",
        {"type": "string", "format": "uri"},
    ),
)
_OF_JOBS = frozenset(
    {
        *("Prefer", "Idempotency-Key", "Firstlight-Deadline"),
        *("Firstlight-Max-Attempts", "Firstlight-Webhook"),
    }
)
_PROBLEMS = {
    400: "Not JSON, not a valid request, or more than the context holds.",
    401: "The API key is missing or wrong.",
    404: "No model of that name is deployed.",
    413: "The body is larger than the model takes.",
    409: "With `Prefer: respond-async`: the Idempotency-Key was used for another request.",
    429: "The model holds as many requests as it may, or the platform as many jobs.",
    502: "Replicas were lost.",
    503: "Replicas cannot start, or no machine can be had.",
    504: "A deadline passed: cold start, queue or execution.",
}


def document(app: FastAPI) -> None:
    """Makes the app's OpenAPI description whole."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None or "/v1/completions" not in app.openapi_schema["paths"]:
            _add_hot_routes(described())
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_hot_routes(schema: dict[str, Any]) -> None:
    paths, schemas = schema["paths"], schema["components"]["schemas"]
    paths["/v1/chat/completions"] = _operation(
        "Answers a conversation, in OpenAI's form.",
        ChatCompletionRequest,
        ChatCompletion,
        ChatCompletionChunk,
    )
    paths["/v1/completions"] = _operation(
        "Continues prompts, in OpenAI's form.", CompletionRequest, Completion, Completion
    )
    paths["/v1/embeddings"] = _operation(
        "Gives a vector for each input, in OpenAI's form.", EmbeddingsRequest, Embeddings
    )
    paths["/v1/models/{name}/invoke"] = _operation(
        "Calls a model like a function.", InvokeRequest, InvokeResponse, InvokeEvent
    )
    _name_parameters(paths["/v1/models/{name}/invoke"], "name")
    for below in ("", "/versions/{version}"):
        _add_inference_routes(paths, f"/v2/models/{{name}}{below}")
    schemas.update(_schemas())


def _add_inference_routes(paths: dict[str, Any], prefix: str) -> None:
    routes = {
        "infer": _operation(
            "Continues prompts in a tensor, in the open inference protocol.",
            InferenceRequest,
            InferenceResponse,
        ),
        "generate": _operation(
            "Continues a text, in the open inference protocol.", GenerateRequest, GenerateResponse
        ),
        "generate_stream": _operation(
            "Continues a text as server-sent events.",
            GenerateRequest,
            GenerateResponse,
            GenerateResponse,
        ),
    }
    for verb, operation in routes.items():
        names = ("name", "version") if "{version}" in prefix else ("name",)
        _name_parameters(operation, *names)
        post = operation["post"]
        post["tags"] = ["open inference protocol"]
        if verb == "generate_stream":
            post["responses"]["200"]["content"].pop("application/json")
        del post["responses"]["202"]
        post["parameters"] = [it for it in post["parameters"] if it["name"] not in _OF_JOBS]
        paths[f"{prefix}/{verb}"] = operation


def _name_parameters(operation: dict[str, Any], *names: str) -> None:
    operation["post"]["parameters"] += [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]


def _operation(
    summary: str,
    asked: type[BaseModel],
    answer: type[BaseModel],
    event: type[BaseModel] | None = None,
) -> dict[str, Any]:
    forms, of_streams = {"application/json": _of(answer)}, ""
    if event is not None:
        forms["text/event-stream"] = _of(event)
        of_streams = "With `stream`, server-sent events. "
    return {
        "post": {
            "tags": ["generation"],
            "summary": summary,
            "description": f"{of_streams}A model at zero replicas is woken "
            "and the request is held until one is ready.",
            "parameters": [
                {
                    "name": name,
                    "in": "header",
                    "required": False,
                    "description": description,
                    "schema": schema,
                }
                for name, description, schema in _ASKED_HEADERS
            ],
            "requestBody": {"required": True, "content": {"application/json": _of(asked)}},
            "responses": {
                "200": {
                    "description": "The answer" + (", or its events." if event else "."),
                    "headers": {
                        name: {"description": text, "schema": {"type": "string"}}
                        for name, text in _HEADERS.items()
                    },
                    "content": forms,
                },
                "202": {
                    "description": "With `Prefer: respond-async`: the job is on disk.",
                    "headers": {
                        "Location": {
                            "description": "Where the job is.",
                            "schema": {"type": "string"},
                        }
                    },
                    "content": {"application/json": _of(JobStatus)},
                },
                **{
                    str(status): {
                        "description": text,
                        "content": {"application/problem+json": _of(Problem)},
                    }
                    for status, text in _PROBLEMS.items()
                },
            },
        }
    }


def _of(model: type[BaseModel]) -> dict[str, Any]:
    return {"schema": {"$ref": _REF.format(model=model.__name__)}}


def _schemas() -> dict[str, Any]:
    asked = (
        *(ChatCompletionRequest, CompletionRequest, EmbeddingsRequest, InvokeRequest),
        *(InferenceRequest, GenerateRequest, ModelSpec),
    )
    answered = (
        *(ChatCompletion, ChatCompletionChunk, Completion, Embeddings),
        *(InvokeResponse, InvokeEvent, InferenceResponse, GenerateResponse, Problem),
    )
    _, schema = models_json_schema(
        [(model, "validation") for model in asked]
        + [(model, "serialization") for model in answered],
        ref_template=_REF,
    )
    definitions: dict[str, Any] = schema["$defs"]
    return definitions

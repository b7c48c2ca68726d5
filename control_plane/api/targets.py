"""Which paths are hot, and what each of them means."""

from dataclasses import dataclass
from urllib.parse import unquote

import httptools

from infra.contracts.embeddings import EmbeddingsRequest
from infra.contracts.generation import (
    ChatCompletionRequest,
    CompletionRequest,
    InvokeRequest,
)
from infra.generation_requests import ModelBody

_INVOKE_PREFIX, _INVOKE_SUFFIX = "/v1/models/", "/invoke"


@dataclass(frozen=True, slots=True)
class Target:
    """What a path means: a contract, the replica's path for it, the model if the path names it."""

    contract: type[ModelBody]
    replica_path: str
    model: str | None = None


_TARGETS = {
    "/v1/chat/completions": Target(ChatCompletionRequest, "/v1/chat/completions"),
    "/v1/completions": Target(CompletionRequest, "/v1/completions"),
    "/v1/embeddings": Target(EmbeddingsRequest, "/v1/embeddings"),
}
_AS_SENT = {path.encode(): (path, target) for path, target in _TARGETS.items()}


def target_of(url: bytes) -> tuple[str, Target] | None:
    """The path of a request's target and what is hot there; None for every other path.

    Raises HttpParserInvalidURLError.
    """
    found = _AS_SENT.get(url)
    if found is not None:
        return found
    path = httptools.parse_url(url).path.decode("ascii")
    if "%" in path:
        path = unquote(path)
    target = _TARGETS.get(path) or _invocation(path)
    return None if target is None else (path, target)


def _invocation(path: str) -> Target | None:
    if not (path.startswith(_INVOKE_PREFIX) and path.endswith(_INVOKE_SUFFIX)):
        return None
    model = path[len(_INVOKE_PREFIX) : -len(_INVOKE_SUFFIX)]
    return None if "/" in model else Target(InvokeRequest, "/invoke", model)

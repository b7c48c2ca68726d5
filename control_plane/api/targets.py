"""Which paths are hot, and what each of them means."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final
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


def target_of(url: bytes) -> tuple[str, Target] | None:
    """The path of a request's target and what is hot there; None for every other path.

    Raises HttpParserInvalidURLError.
    """
    return _remembered(url) if len(url) <= _MOST_REMEMBERED_BYTES else _read(url)


def _read(url: bytes) -> tuple[str, Target] | None:
    path = httptools.parse_url(url).path.decode("ascii")
    if "%" in path:
        path = unquote(path)
    target = _TARGETS.get(path) or _invocation(path)
    return None if target is None else (path, target)


_MOST_REMEMBERED_BYTES: Final = 256
_remembered: Final = lru_cache(maxsize=1024)(_read)


def _invocation(path: str) -> Target | None:
    if not (path.startswith(_INVOKE_PREFIX) and path.endswith(_INVOKE_SUFFIX)):
        return None
    model = path[len(_INVOKE_PREFIX) : -len(_INVOKE_SUFFIX)]
    return None if "/" in model else Target(InvokeRequest, "/invoke", model)

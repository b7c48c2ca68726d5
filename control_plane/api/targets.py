"""Which paths are hot, and what each of them means."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

import httptools

from control_plane.api.inference import question
from control_plane.api.translation import Translation
from infra.contracts.embeddings import EmbeddingsRequest
from infra.contracts.generation import (
    ChatCompletionRequest,
    CompletionRequest,
    InvokeRequest,
)
from infra.generation_requests import ModelBody

_INVOKE_PREFIX, _INVOKE_SUFFIX = "/v1/models/", "/invoke"
_INFERENCE_PREFIX: Final = "/v2/models/"


@dataclass(frozen=True, slots=True)
class Target:
    """What a path means: a contract, the replica's path for it, the model if the path names it, and
    the number of its revision; `translation` makes a body of the contract of what is sent there."""

    contract: type[ModelBody]
    replica_path: str
    model: str | None = None
    version: str | None = None
    translation: Translation | None = None


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
    target = _TARGETS.get(path) or _invocation(path) or _inference(path)
    return None if target is None else (path, target)


_MOST_REMEMBERED_BYTES: Final = 256
_remembered: Final = lru_cache(maxsize=1024)(_read)


def _invocation(path: str) -> Target | None:
    if not (path.startswith(_INVOKE_PREFIX) and path.endswith(_INVOKE_SUFFIX)):
        return None
    model = path[len(_INVOKE_PREFIX) : -len(_INVOKE_SUFFIX)]
    return None if "/" in model else Target(InvokeRequest, "/invoke", model)


_TRANSLATIONS: Final[dict[str, Translation]] = {
    "infer": question.infer,
    "generate": question.generate,
    "generate_stream": question.generate_stream,
}


def _inference(path: str) -> Target | None:
    """`/v2/models/NAME/infer`, or of one version `/v2/models/NAME/versions/3/infer`."""
    if not path.startswith(_INFERENCE_PREFIX):
        return None
    model, *rest = path[len(_INFERENCE_PREFIX) :].split("/")
    version = rest[1] if len(rest) == 3 and rest[0] == "versions" else None
    translation = _TRANSLATIONS.get(rest[-1]) if version is not None or len(rest) == 1 else None
    if translation is None:
        return None
    return Target(CompletionRequest, "/v1/completions", model, version, translation)

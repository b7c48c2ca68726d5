"""What a request of the open inference protocol may say of its answer, in a completion's words."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from infra.contracts.generation import CompletionRequest
from infra.errors import Invalid
from infra.generation_requests import json_object

# Triton's vLLM backend takes a JSON object of parameters as text under this name.
SAMPLING_PARAMETERS: Final = "sampling_parameters"

_EXCLUDE_INPUT: Final = "exclude_input_in_output"
_NAMES: Final = {"max_new_tokens": "max_tokens", "random_seed": "seed"}
_ELSEWHERE: Final = {"model", "prompt", "stream", "stream_options", "n", "logprobs", "echo"}
_COMPLETIONS: Final = frozenset(CompletionRequest.model_fields) - _ELSEWHERE
KNOWN: Final = _COMPLETIONS | _NAMES.keys() | {SAMPLING_PARAMETERS, _EXCLUDE_INPUT, "stream"}


def completion(
    model: str, prompts: list[str], parameters: Iterable[Mapping[str, Any]], *, is_stream: bool
) -> bytes:
    """The JSON of a completion of each prompt; of `parameters` later ones go before earlier ones.

    Parameters that nobody knows are left out, as the protocol wants it; raises Invalid for those
    that would give more than a text for a prompt. The values are checked as a completion's.
    """
    asked: dict[str, Any] = {}
    for some in parameters:
        asked |= _spread(some)
    _refuse_other_answers(asked, is_stream)
    body: dict[str, Any] = {"model": model, "prompt": prompts}
    for name, value in asked.items():
        name = _NAMES.get(name, name)
        if name in _COMPLETIONS and value is not None:
            body[name] = value
    if asked.get(_EXCLUDE_INPUT) is False:
        body["echo"] = True
    if is_stream:
        body["stream"] = True
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        raise Invalid("a parameter nests too deep", param="parameters") from None


def _spread(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """With those that came as the text of a JSON object."""
    text = parameters.get(SAMPLING_PARAMETERS)
    if text is None:
        return dict(parameters)
    if not isinstance(text, str):
        raise Invalid(f"{SAMPLING_PARAMETERS} is not text", param=SAMPLING_PARAMETERS)
    return {**json_object(text.encode()), **parameters}


def _refuse_other_answers(asked: Mapping[str, Any], is_stream: bool) -> None:
    if asked.get("n") not in (None, 1):
        raise Invalid("n is not supported here", param="n", hint="send the prompt n times")
    if asked.get("logprobs") not in (None, False, 0):
        hint = "use /v1/completions"
        raise Invalid("logprobs are not supported here", param="logprobs", hint=hint)
    if asked.get("stream") not in (None, is_stream):
        hint = "generate_stream answers with a stream, generate and infer do not"
        raise Invalid(
            f"stream can only be {str(is_stream).lower()} here", param="stream", hint=hint
        )
    if not isinstance(asked.get(_EXCLUDE_INPUT), bool | None):
        raise Invalid(f"{_EXCLUDE_INPUT} is not a boolean", param=_EXCLUDE_INPUT)

"""Refuses what no engine can compute."""

import math
from collections.abc import Iterable

from infra.errors import Invalid
from worker.engine.request import GenerationRequest, Request, SamplingParams

MOST_LOGPROBS = 20
MOST_PENALTY = 2.0
MOST_BIAS = 100.0
MOST_BIASED_TOKENS = 1024
MOST_STOP_TOKENS = 1024


def check_request(request: Request, *, vocabulary: int) -> None:
    """Raises Invalid, which names the parameter."""
    _check_prompt(request.prompt_token_ids, vocabulary)
    if not isinstance(request, GenerationRequest):
        return
    _check_choice(request.sampling)
    _check_penalties(request.sampling, vocabulary)
    _check_end(request.sampling, vocabulary)
    _check_logprobs(request.sampling)


def _check_prompt(token_ids: tuple[int, ...], vocabulary: int) -> None:
    if not token_ids:
        raise Invalid("the prompt has no tokens", param="prompt")
    if not _are_tokens(token_ids, vocabulary):
        raise Invalid(f"the prompt has a token id that is not below {vocabulary}", param="prompt")


def _check_choice(sampling: SamplingParams) -> None:
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise Invalid("temperature is not a number of 0 or more", param="temperature")
    if not 0 < sampling.top_p <= 1:
        raise Invalid("top_p is not over 0 and at most 1", param="top_p")
    if sampling.top_k < 0:
        raise Invalid("top_k is less than 0", param="top_k")
    if not 0 <= sampling.min_p <= 1:
        raise Invalid("min_p is not from 0 to 1", param="min_p")


def _check_penalties(sampling: SamplingParams, vocabulary: int) -> None:
    if not (math.isfinite(sampling.repetition_penalty) and sampling.repetition_penalty > 0):
        raise Invalid("repetition_penalty is not a number over 0", param="repetition_penalty")
    for param in ("presence_penalty", "frequency_penalty"):
        if not -MOST_PENALTY <= getattr(sampling, param) <= MOST_PENALTY:
            raise Invalid(f"{param} is not from -{MOST_PENALTY} to {MOST_PENALTY}", param=param)
    bias = dict(sampling.logit_bias)
    if len(bias) != len(sampling.logit_bias) or len(bias) > MOST_BIASED_TOKENS:
        raise Invalid(
            f"logit_bias has a token twice, or more than {MOST_BIASED_TOKENS} of them",
            param="logit_bias",
        )
    if not _are_tokens(bias, vocabulary):
        raise Invalid(
            f"logit_bias has a token id that is not below {vocabulary}", param="logit_bias"
        )
    if not all(-MOST_BIAS <= value <= MOST_BIAS for value in bias.values()):
        raise Invalid(
            f"logit_bias has a value that is not from -{MOST_BIAS} to {MOST_BIAS}",
            param="logit_bias",
        )


def _check_end(sampling: SamplingParams, vocabulary: int) -> None:
    if sampling.max_tokens < 1:
        raise Invalid("max_tokens is less than 1", param="max_tokens")
    if not 0 <= sampling.min_tokens <= sampling.max_tokens:
        raise Invalid("min_tokens is not from 0 to max_tokens", param="min_tokens")
    if "" in sampling.stop:
        raise Invalid("a stop string is empty", param="stop")
    if len(sampling.stop_token_ids) > MOST_STOP_TOKENS:
        raise Invalid(f"more than {MOST_STOP_TOKENS} stop_token_ids", param="stop_token_ids")
    if not _are_tokens(sampling.stop_token_ids, vocabulary):
        raise Invalid(
            f"stop_token_ids has a token id that is not below {vocabulary}", param="stop_token_ids"
        )


def _check_logprobs(sampling: SamplingParams) -> None:
    for param in ("logprobs", "prompt_logprobs"):
        count = getattr(sampling, param)
        if count is not None and not 0 <= count <= MOST_LOGPROBS:
            raise Invalid(f"{param} is not from 0 to {MOST_LOGPROBS}", param=param)


def _are_tokens(token_ids: Iterable[int], vocabulary: int) -> bool:
    return all(0 <= token_id < vocabulary for token_id in token_ids)

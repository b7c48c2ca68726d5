"""Turns the tokens of one request into its outputs."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from worker.engine.choice import Choice
from worker.engine.request import (
    FinishReason,
    GenerationRequest,
    Output,
    SamplingParams,
    TokenLogprob,
)
from worker.engine.stop_strings import StopStrings


class Detokenizer(Protocol):
    """Text of tokens that arrive one by one."""

    def push(self, token_id: int) -> str: ...
    def flush(self) -> str: ...


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def eos_token_ids(self) -> frozenset[int]: ...
    @property
    def special_token_ids(self) -> frozenset[int]: ...
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def stream(self) -> Detokenizer: ...
    def token_bytes(self, token_id: int) -> bytes: ...


def end_token_ids(sampling: SamplingParams, tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end the answer."""
    own = frozenset[int]() if sampling.ignore_eos else tokenizer.eos_token_ids
    return own | sampling.stop_token_ids


@dataclass(frozen=True, slots=True)
class _Pending:
    """A token's log-probability, held back with the characters that it wrote."""

    logprob: TokenLogprob
    begin: int  # characters of the whole text before it, and with it
    end: int


class Completion:
    """One request's answer so far: its text, what is held back of it, whether it has ended."""

    def __init__(self, request: GenerationRequest, tokenizer: Tokenizer) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.stream()
        self._end_token_ids = end_token_ids(request.sampling, tokenizer)
        self._stops = StopStrings(request.sampling.stop)
        self._prompt_logprobs: list[TokenLogprob] = []
        if request.sampling.prompt_logprobs is not None:
            self._prompt_logprobs.append(self._spell(request.prompt_token_ids[0], math.nan))
        self._pending: deque[_Pending] = deque()
        self._num_tokens = 0
        self._num_decoded = 0  # characters
        self._num_shown = 0

    def add_prompt(self, choices: Sequence[Choice]) -> None:
        """The next tokens of the prompt after its first; the first output will have them all."""
        self._prompt_logprobs += map(self._describe, choices)

    def push(self, choice: Choice, *, is_complete: bool = False) -> Output:
        """What the token adds. A token that ends the answer adds no text and no log-probability.

        After it an answer that `is_complete` is at its end.
        """
        self._num_tokens += 1
        is_end = choice.token_id in self._end_token_ids
        text = "" if is_end else self._decode(choice)
        finish_reason = self._finish_reason(is_end=is_end or is_complete)
        if finish_reason is not None and not self._stops.is_stopped:
            text += self._flush()
            if self._stops.is_stopped:
                finish_reason = "stop"
        self._num_shown += len(text)
        prompt_logprobs, self._prompt_logprobs = tuple(self._prompt_logprobs), []
        return Output(
            request_id=self._request.request_id,
            text=text,
            token_ids=(choice.token_id,),
            logprobs=self._release(is_last=finish_reason is not None),
            finish_reason=finish_reason,
            prompt_logprobs=prompt_logprobs,
        )

    def _decode(self, choice: Choice) -> str:
        piece = self._detokenizer.push(choice.token_id)
        begin = self._num_decoded
        self._num_decoded += len(piece)
        if self._request.sampling.logprobs is not None:
            logprob = self._describe(choice)
            self._pending.append(_Pending(logprob, begin, self._num_decoded))
        return self._push_text(piece)

    def _push_text(self, piece: str) -> str:
        is_early = self._num_tokens <= self._request.sampling.min_tokens
        return self._stops.push(piece, may_stop=not is_early)

    def _finish_reason(self, *, is_end: bool) -> FinishReason | None:
        if is_end or self._stops.is_stopped:
            return "stop"
        return "length" if self._num_tokens == self._request.sampling.max_tokens else None

    def _flush(self) -> str:
        """The rest of the text, when no more tokens come."""
        piece = self._detokenizer.flush()
        self._num_decoded += len(piece)
        text = self._push_text(piece)
        return text if self._stops.is_stopped else text + self._stops.flush()

    def _release(self, *, is_last: bool) -> tuple[TokenLogprob, ...]:
        """Those whose text is out; at the end, all that are not wholly in the stop string."""
        released = []
        while self._pending:
            head = self._pending[0]
            is_out = head.end <= self._num_shown
            if not is_out and not (is_last and head.begin < self._num_shown):
                break
            released.append(self._pending.popleft().logprob)
        return tuple(released)

    def _describe(self, choice: Choice) -> TokenLogprob:
        top = tuple(self._spell(token_id, logprob) for token_id, logprob in choice.top)
        return self._spell(choice.token_id, choice.logprob, top)

    def _spell(
        self, token_id: int, logprob: float, top: tuple[TokenLogprob, ...] = ()
    ) -> TokenLogprob:
        spelling = self._tokenizer.token_bytes(token_id)
        return TokenLogprob(token_id, spelling.decode("utf-8", "replace"), spelling, logprob, top)

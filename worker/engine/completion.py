"""Turns the tokens of one request into its outputs."""

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from worker.engine.choice import Choice
from worker.engine.request import FinishReason, GenerationRequest, Output, TokenLogprob
from worker.engine.stop_strings import StopStrings


class Detokenizer(Protocol):
    """Text of tokens that arrive one by one."""

    def push(self, token_id: int) -> str: ...
    def flush(self) -> str: ...


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def eos_token_ids(self) -> frozenset[int]: ...
    def stream(self) -> Detokenizer: ...
    def token_bytes(self, token_id: int) -> bytes: ...


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
        self._stops = StopStrings(request.sampling.stop)
        self._pending: deque[_Pending] = deque()
        self._num_tokens = 0
        self._num_decoded = 0  # characters
        self._num_shown = 0

    def push(self, choice: Choice) -> Output:
        """What the token adds. The end token adds no text and no log-probability."""
        self._num_tokens += 1
        is_end = choice.token_id in self._tokenizer.eos_token_ids
        text = "" if is_end else self._decode(choice)
        finish_reason = self._finish_reason(is_end=is_end)
        if finish_reason is not None and not self._stops.is_stopped:
            text += self._flush()
            if self._stops.is_stopped:
                finish_reason = "stop"
        self._num_shown += len(text)
        return Output(
            request_id=self._request.request_id,
            text=text,
            token_ids=(choice.token_id,),
            logprobs=self._release(is_last=finish_reason is not None),
            finish_reason=finish_reason,
        )

    def _decode(self, choice: Choice) -> str:
        piece = self._detokenizer.push(choice.token_id)
        begin = self._num_decoded
        self._num_decoded += len(piece)
        if self._request.sampling.logprobs is not None:
            logprob = self._describe(choice)
            self._pending.append(_Pending(logprob, begin, self._num_decoded))
        return self._stops.push(piece)

    def _finish_reason(self, *, is_end: bool) -> FinishReason | None:
        if is_end or self._stops.is_stopped:
            return "stop"
        return "length" if self._num_tokens == self._request.sampling.max_tokens else None

    def _flush(self) -> str:
        """The rest of the text, when no more tokens come."""
        piece = self._detokenizer.flush()
        self._num_decoded += len(piece)
        text = self._stops.push(piece)
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

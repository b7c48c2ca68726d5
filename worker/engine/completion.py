"""Turns what the engine tells of one request into its outputs."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from worker.engine.choice import Choice
from worker.engine.event import Embedded, Ending, Event, Failure, NewToken, PromptScores
from worker.engine.request import FinishReason, GenerationRequest, Output, TokenLogprob
from worker.engine.stop_strings import StopStrings


class Detokenizer(Protocol):
    """Text of tokens that arrive one by one."""

    def push(self, token_id: int) -> str: ...
    def flush(self) -> str: ...


class Tokenizer(Protocol):
    """What answers need of a tokenizer."""

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
        self._prompt_logprobs: list[TokenLogprob] = []
        if request.sampling.prompt_logprobs is not None:
            self._prompt_logprobs.append(self._spell(request.prompt_token_ids[0], math.nan))
        self._pending: deque[_Pending] = deque()
        self._num_tokens = 0
        self._num_decoded = 0  # characters
        self._num_shown = 0

    def take(self, event: Event) -> Output | None:
        """What the event adds, if it is a token; raises the error that ended the request.

        After a stop string the output is the last, which the engine cannot know: it is to be told,
        and the tokens that it made meanwhile are nobody's.
        """
        match event:
            case NewToken():
                return self._push(event)
            case PromptScores():
                self._prompt_logprobs += map(self._describe, event.choices)
                return None
            case Failure():
                raise event.error
            case Embedded():
                raise AssertionError("an answer is no vector")

    def _push(self, event: NewToken) -> Output:
        """A token that ends the answer adds no text and no log-probability."""
        choice, ending = event.choice, event.ending
        self._num_tokens += 1
        text = "" if ending is Ending.END_TOKEN else self._decode(choice)
        if ending is not None and not self._stops.is_stopped:
            text += self._flush()
        finish_reason = self._finish_reason(ending)
        self._num_shown += len(text)
        prompt_logprobs, self._prompt_logprobs = tuple(self._prompt_logprobs), []
        return Output(
            request_id=self._request.request_id,
            text=text,
            token_ids=(choice.token_id,),
            logprobs=self._release(is_last=finish_reason is not None),
            finish_reason=finish_reason,
            prompt_logprobs=prompt_logprobs,
            cached_tokens=event.cached_tokens,
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

    def _finish_reason(self, ending: Ending | None) -> FinishReason | None:
        if self._stops.is_stopped:
            return "stop"
        match ending:
            case None:
                return None
            case Ending.LENGTH:
                return "length"
            case Ending.END_TOKEN | Ending.GUIDE_COMPLETE:
                return "stop"

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

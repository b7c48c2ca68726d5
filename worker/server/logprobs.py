"""Log-probabilities as OpenAI writes them: JSON fragments to be joined with commas."""

import codecs
import math
from dataclasses import dataclass, field
from typing import Any

import orjson

from worker.engine.request import TokenLogprob

# JSON has no -inf; this is what the OpenAI API writes for a token that could not be.
LEAST_LOGPROB = -9999.0


def chat_entries(tokens: tuple[TokenLogprob, ...]) -> bytes:
    """`logprobs.content` of these tokens, without its brackets."""
    return orjson.dumps([_chat_entry(token) for token in tokens])[1:-1]


def _chat_entry(token: TokenLogprob) -> dict[str, Any]:
    return {**_alternative(token), "top_logprobs": [_alternative(other) for other in token.top]}


def _alternative(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": max(token.logprob, LEAST_LOGPROB),
        "bytes": list(token.bytes),
    }


@dataclass(frozen=True, slots=True)
class CompletionEntries:
    """The four parallel lists of `logprobs` of a completion, each without its brackets."""

    tokens: bytes
    token_logprobs: bytes
    top_logprobs: bytes
    text_offset: bytes

    @property
    def columns(self) -> tuple[bytes, bytes, bytes, bytes]:
        return (self.tokens, self.token_logprobs, self.top_logprobs, self.text_offset)

    @property
    def byte_count(self) -> int:
        return sum(map(len, self.columns))


def completion_object(entries: list[CompletionEntries]) -> bytes:
    """`logprobs` of a completion from the entries of its steps."""
    columns = [b",".join(parts) for parts in zip(*(step.columns for step in entries), strict=True)]
    return b'{"tokens":[%b],"token_logprobs":[%b],"top_logprobs":[%b],"text_offset":[%b]}' % (
        tuple(columns) or (b"", b"", b"", b"")
    )


@dataclass(slots=True)
class TextOffsets:
    """Where each token of one choice begins in its text, in characters."""

    _characters: int = 0
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def entries(self, tokens: tuple[TokenLogprob, ...]) -> CompletionEntries:
        """The tokens that one step added."""
        return CompletionEntries(
            tokens=orjson.dumps([token.text for token in tokens])[1:-1],
            token_logprobs=orjson.dumps([max(t.logprob, LEAST_LOGPROB) for t in tokens])[1:-1],
            top_logprobs=orjson.dumps([_top(token) for token in tokens])[1:-1],
            text_offset=orjson.dumps([self._advance(token) for token in tokens])[1:-1],
        )

    def _advance(self, token: TokenLogprob) -> int:
        start = self._characters
        self._characters += len(self._decoder.decode(token.bytes))
        return start


def _top(token: TokenLogprob) -> dict[str, float] | None:
    """The likeliest tokens and the chosen one, which may not be among them.

    The first token of a prompt has none, and null for its own: orjson writes NaN so.
    """
    if math.isnan(token.logprob):
        return None
    return {other.text: max(other.logprob, LEAST_LOGPROB) for other in (*token.top, token)}

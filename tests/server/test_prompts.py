import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from infra.errors import ContextLengthExceeded
from worker.server.asked import ChatPrompt, TextPrompt, TokenPrompt
from worker.server.byte_tokenizer import ByteTokenizer
from worker.server.prompts import INLINE_CHARACTERS, PromptEncoder


class WatchedTokenizer(ByteTokenizer):
    """Notes how much it encodes, on which threads."""

    def __init__(self) -> None:
        self.encoded: list[int] = []
        self.threads: set[int] = set()

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        self.encoded.append(len(text))
        self.threads.add(threading.get_ident())
        return super().encode(text, add_special_tokens=add_special_tokens)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def test_short_prompts_are_tokenised_at_once() -> None:
    tokenizer = WatchedTokenizer()
    encoder = PromptEncoder(tokenizer, context_tokens=100_000)

    run(encoder.encode((TextPrompt("x" * INLINE_CHARACTERS),), now=0))
    encoder.close()

    assert tokenizer.threads == {threading.get_ident()}


def test_long_prompts_and_long_chats_leave_the_event_loop_alone() -> None:
    text = TextPrompt("x" * (INLINE_CHARACTERS + 1))
    chat = ChatPrompt([{"role": "user", "content": "x"}] * 100)
    for prompt in (text, chat):
        tokenizer = WatchedTokenizer()
        encoder = PromptEncoder(tokenizer, context_tokens=100_000)

        run(encoder.encode((prompt,), now=0))
        encoder.close()

        assert threading.get_ident() not in tokenizer.threads


def test_a_text_that_cannot_fit_is_refused_after_its_beginning() -> None:
    tokenizer = WatchedTokenizer()
    encoder = PromptEncoder(tokenizer, context_tokens=1000)

    with pytest.raises(ContextLengthExceeded):
        run(encoder.encode((TextPrompt("x" * 1_000_000),), now=0))
    encoder.close()

    assert sum(tokenizer.encoded) < 20_000


def test_a_long_text_of_few_tokens_still_fits() -> None:
    class Generous(WatchedTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [0] * (len(text) // 100)

        def token_bytes(self, token_id: int) -> bytes:
            return b"x" * 100

    encoder = PromptEncoder(Generous(), context_tokens=1000)

    [token_ids] = run(encoder.encode((TextPrompt("x" * 99_000),), now=0))
    encoder.close()

    assert len(token_ids) == 990


def test_token_ids_are_taken_as_they_are() -> None:
    tokenizer = WatchedTokenizer()
    encoder = PromptEncoder(tokenizer, context_tokens=10)

    assert run(encoder.encode((TokenPrompt([1, 2]), TokenPrompt([3])), now=0)) == [(1, 2), (3,)]
    assert tokenizer.encoded == []

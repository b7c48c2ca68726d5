"""Prompts become token ids, off the event loop when they are long."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from infra.errors import ContextLengthExceeded, Invalid
from worker.server.asked import ChatPrompt, Prompt, TextPrompt, TokenPrompt
from worker.server.ports import Tokenizer

# Below this a hop to a thread and back costs more than tokenising here (about 1 ms).
INLINE_CHARACTERS = 2048
INLINE_MESSAGES = 32

_THREADS = 2
# Of a long text ever longer beginnings are tokenised first, so that one of 4 MB that cannot fit is
# refused in milliseconds. Tokens near the cut may come out otherwise than in the whole text; the
# slack covers them amply.
_CHARACTERS_PER_TOKEN = 8
_SLACK_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Purpose:
    """What prompts are for: what callers call them, and how many tokens come after at least."""

    param: str
    least_output: int


TO_CONTINUE = Purpose("prompt", least_output=1)
TO_EMBED = Purpose("input", least_output=0)


class PromptEncoder:
    """Knows how many tokens fit and refuses what cannot be shorter than that."""

    def __init__(self, tokenizer: Tokenizer, *, context_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenize")

    async def encode(
        self, prompts: Sequence[Prompt], *, now: float, purpose: Purpose = TO_CONTINUE
    ) -> list[tuple[int, ...]]:
        """Token ids of each prompt, at least one and with the least output as many as fit.

        `now`, in unix seconds, is for chat templates that tell the date.

        Raises ContextLengthExceeded, Invalid, or what the chat template raises.
        """
        if _is_short(prompts):
            return [self._encode(prompt, now, purpose) for prompt in prompts]
        loop = asyncio.get_running_loop()
        return [
            await loop.run_in_executor(self._threads, self._encode, prompt, now, purpose)
            for prompt in prompts
        ]

    def text(self, prompt: Prompt, *, now: float) -> str:
        """The prompt as text, to be echoed; `now` as it was encoded with."""
        match prompt:
            case TextPrompt(text):
                return text
            case TokenPrompt(token_ids):
                spelling = b"".join(map(self._tokenizer.token_bytes, token_ids))
                return spelling.decode("utf-8", "replace")
            case ChatPrompt(messages):
                return self._tokenizer.render_chat(messages, now=now)

    def close(self) -> None:
        """Threads end with what they are doing; may be repeated."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _encode(self, prompt: Prompt, now: float, purpose: Purpose) -> tuple[int, ...]:
        token_ids = self._token_ids(prompt, now, purpose)
        if not token_ids:
            raise Invalid(f"the {purpose.param} has no tokens", param=purpose.param)
        if len(token_ids) + purpose.least_output > self._context_tokens:
            raise self._too_long(str(len(token_ids)), purpose)
        if isinstance(prompt, TokenPrompt):
            self._refuse_unknown(token_ids, purpose)
        return tuple(token_ids)

    def _token_ids(self, prompt: Prompt, now: float, purpose: Purpose) -> list[int]:
        match prompt:
            case TextPrompt(text):
                return self._encode_text(text, purpose, add_special_tokens=True)
            case ChatPrompt(messages):
                conversation = self._tokenizer.render_chat(messages, now=now)
                return self._encode_text(conversation, purpose, add_special_tokens=False)
            case TokenPrompt(token_ids):
                return token_ids

    def _encode_text(self, text: str, purpose: Purpose, *, add_special_tokens: bool) -> list[int]:
        enough = self._context_tokens + _SLACK_TOKENS
        cut = enough * _CHARACTERS_PER_TOKEN
        while cut < len(text):
            if len(self._tokenizer.encode(text[:cut], add_special_tokens=False)) > enough:
                raise self._too_long(f"more than {self._context_tokens}", purpose)
            cut *= 2
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _refuse_unknown(self, token_ids: list[int], purpose: Purpose) -> None:
        vocabulary = self._tokenizer.vocabulary
        for position, token_id in enumerate(token_ids):
            if not 0 <= token_id < vocabulary:
                raise Invalid(
                    f"{token_id} is not a token id: there are {vocabulary}",
                    param=f"{purpose.param}[{position}]",
                )

    def _too_long(self, how_many: str, purpose: Purpose) -> ContextLengthExceeded:
        output = "with at least one of output " if purpose.least_output else ""
        return ContextLengthExceeded(
            f"the {purpose.param} has {how_many} tokens; {output}the context holds "
            f"{self._context_tokens}",
            hint=f"shorten the {purpose.param}",
            limit=self._context_tokens,
        )


def _is_short(prompts: Sequence[Prompt]) -> bool:
    return sum(map(_characters, prompts)) <= INLINE_CHARACTERS


def _characters(prompt: Prompt) -> int:
    match prompt:
        case TextPrompt(text):
            return len(text)
        case TokenPrompt():
            return 0  # nothing to tokenise
        case ChatPrompt(messages):
            characters = sum(len(value) for message in messages for value in message.values())
            return characters + len(messages) * (INLINE_CHARACTERS // INLINE_MESSAGES)

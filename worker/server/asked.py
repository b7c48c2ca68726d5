"""What every flavour of generation request comes down to, and how its answer is written."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from infra.contracts.generation import GenerationBody
from worker.engine.request import Output
from worker.server.envelope import Letterhead, Usage


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text to continue."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids to continue, not yet checked against a vocabulary."""

    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages to answer."""

    messages: list[dict[str, str]]


Prompt = TextPrompt | TokenPrompt | ChatPrompt


def written_prompt(prompt: str | list[int]) -> Prompt:
    """As callers may write one of several."""
    return TextPrompt(prompt) if isinstance(prompt, str) else TokenPrompt(prompt)


class EventWriter(Protocol):
    """Writes one streamed answer as server-sent events."""

    def delta(self, index: int, output: Output) -> bytes:
        """What a step added to a choice, as events; empty when there is nothing to say."""
        ...

    def closing(self, usage: Usage) -> bytes:
        """The last events."""
        ...


class AnswerWriter(Protocol):
    """Writes one whole answer as JSON, from pieces as they come."""

    def add(self, index: int, output: Output) -> int:
        """Keeps what a step added to a choice; returns about how many bytes that took."""
        ...

    def whole(self, usage: Usage) -> bytes:
        """The answer; every choice has had its last output."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A valid request in the engine's words; `body` says how tokens are chosen.

    Every prompt gets `n` choices; choice `j` of prompt `i` has the index `i * n + j`.
    `max_tokens` is what the caller wrote, `default_max_tokens` what holds when nothing was
    written (None: as much as fits). `logprobs` is as in SamplingParams.
    """

    id_prefix: str
    model: str | None
    prompts: tuple[Prompt, ...]
    n: int
    max_tokens: int | None
    default_max_tokens: int | None
    body: GenerationBody
    logprobs: int | None
    is_echo: bool
    is_streaming: bool
    events: Callable[[Letterhead], EventWriter]
    answer: Callable[[Letterhead, int], AnswerWriter]

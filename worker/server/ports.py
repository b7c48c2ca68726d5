"""What the replica's server asks of the engine and of the tokenizer."""

from typing import Protocol

from worker.engine.request import Embedding, EmbeddingRequest, GenerationRequest, Listener
from worker.engine.stats import EngineStats


class Engine(Protocol):
    """Generates, embeds; belongs to the event loop. `worker.engine.fake` has an in-memory one."""

    @property
    def context_tokens(self) -> int:
        """Prompt plus output tokens one request may have."""
        ...

    @property
    def embedding_size(self) -> int:
        """Numbers that a vector has."""
        ...

    @property
    def stats(self) -> EngineStats: ...

    async def generate(self, request: GenerationRequest, listener: Listener) -> None:
        """Begins it; the listener hears the rest. Raises PlatformError where it cannot begin."""
        ...

    def abort(self, request_id: str) -> None:
        """Ends what was begun and of which nothing more is wanted; may be repeated."""
        ...

    async def embed(self, request: EmbeddingRequest) -> Embedding:
        """The prompt's vector; raises PlatformError; cancelling it aborts the request."""
        ...


class Tokenizer(Protocol):
    """Text to token ids and back; its methods may be called from any thread."""

    @property
    def vocabulary(self) -> int:
        """How many token ids there are."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def render_chat(self, messages: list[dict[str, str]], *, now: float) -> str:
        """The conversation as the model's template writes it; raises PlatformError.

        `now`, in unix seconds, is for templates that tell the date.
        """
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The token's exact spelling."""
        ...

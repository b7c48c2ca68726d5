"""The port through which a webhook is called, and its client in memory."""

from collections.abc import Mapping
from typing import Protocol


class WebhookFailed(Exception):
    """The address could not be called, or its answer was none; the text says why."""


class WebhookClient(Protocol):
    """Calls addresses that callers have named."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """The status of the answer; raises WebhookFailed. Follows nothing, reads little."""
        ...


class MemoryWebhooks:
    """Answers what a test says, and remembers what it was sent."""

    def __init__(self) -> None:
        self.answers: list[int | str] = []
        self.calls: list[tuple[str, dict[str, str], bytes]] = []

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        self.calls.append((url, dict(headers), body))
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, str):
            raise WebhookFailed(answer)
        return answer

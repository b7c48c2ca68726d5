"""What an answer carries around its choices: id, model, usage."""

from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Letterhead:
    """What is the same in every chunk of an answer; `created` is in unix seconds."""

    id: str
    created: int
    model: str
    fingerprint: str

    def opening(self, kind: str) -> bytes:
        """The JSON object's first members, up to and with the comma before `choices`."""
        members = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }
        return orjson.dumps(members)[:-1] + b","


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens in and out; a prompt counts once, however many choices it has.

    `cached_tokens` are those of the prompts that did not have to be computed.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    def members(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    @property
    def prompt_header(self) -> tuple[bytes, bytes]:
        return (b"firstlight-prompt-tokens", b"%d" % self.prompt_tokens)

    @property
    def completion_header(self) -> tuple[bytes, bytes]:
        return (b"firstlight-completion-tokens", b"%d" % self.completion_tokens)

    @property
    def comment(self) -> bytes:
        """As a comment between events, for the gateway that counts tokens without parsing them."""
        return b": firstlight-usage %d %d\n\n" % (self.prompt_tokens, self.completion_tokens)

    def written(self) -> bytes:
        """As JSON."""
        return orjson.dumps(self.members())

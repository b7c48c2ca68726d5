"""What a step of the engine did for one request."""

from dataclasses import dataclass
from enum import Enum, auto

from infra.errors import PlatformError
from worker.engine.choice import Choice
from worker.engine.request import Embedding


class Ending(Enum):
    """Why no token follows."""

    END_TOKEN = auto()  # the token itself, which is no part of the text
    GUIDE_COMPLETE = auto()
    LENGTH = auto()


@dataclass(frozen=True, slots=True)
class NewToken:
    """The answer's next token; the first one says how much of the prompt was in the cache."""

    request_id: str
    choice: Choice
    ending: Ending | None = None
    cached_tokens: int = 0

    @property
    def is_last(self) -> bool:
        return self.ending is not None


@dataclass(frozen=True, slots=True)
class PromptScores:
    """How likely the next tokens of the prompt after its first were; all come before its answer."""

    request_id: str
    choices: tuple[Choice, ...]

    @property
    def is_last(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Embedded:
    """The prompt's vector, which is all that was asked for."""

    request_id: str
    embedding: Embedding

    @property
    def is_last(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Failure:
    """The request ended with an error."""

    request_id: str
    error: PlatformError

    @property
    def is_last(self) -> bool:
        return True


Event = NewToken | PromptScores | Embedded | Failure

"""One accepted request, the client that made it, and the answers that are not errors of ours."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from infra.contracts.base import RequestId
from infra.contracts.problem import Problem
from infra.contracts.tenancy import TenantName

Header = tuple[bytes, bytes]


_PROMPT_TOKENS: Final = b"firstlight-prompt-tokens"
_COMPLETION_TOKENS: Final = b"firstlight-completion-tokens"
_DATA: Final = b"data: "
_NEXT_DATA: Final = b"\ndata: "
_USAGE: Final = b": firstlight-usage "
_USAGE_EVENT: Final = re.compile(
    rb"^: firstlight-usage ([0-9]{1,9}) ([0-9]{1,9})\n\n", re.MULTILINE
)


class TokenCount:
    """What an answer has cost so far, as its replica says.

    A stream says its prompt's tokens first and all of them last; if it breaks off in between, its
    events are what is known of its tokens.
    """

    __slots__ = ("completion", "has_begun", "prompt")

    def __init__(self) -> None:
        self.prompt = 0
        self.completion = 0
        self.has_begun = False

    def begin(self, headers: Iterable[Header]) -> None:
        """The head of an answer has come."""
        self.has_begun = True
        for name, value in headers:
            if name == _PROMPT_TOKENS:
                self.prompt = _number(value)
            elif name == _COMPLETION_TOKENS:
                self.completion = _number(value)

    def see(self, events: bytes) -> bytes:
        """Some events of a stream have come; returns them without what is said to us only.

        What a model writes may look like it, but never begins a line: it is JSON.
        """
        # slices, as startswith and endswith take their arguments apart in a tuple
        self.completion += events.count(_NEXT_DATA) + (events[:6] == _DATA)
        if _USAGE not in events or (said := _USAGE_EVENT.search(events)) is None:
            return events
        self.prompt, self.completion = int(said[1]), int(said[2])
        return events[: said.start()] + events[said.end() :]


def _number(said: bytes) -> int:
    """What is no number of tokens counts as none."""
    return int(said) if len(said) < 10 and said.isdigit() else 0


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds a client waits at most; what the model's own timeouts say holds beside it.

    `held_s` counts while the request is held, for whatever reason; `cold_start_s` only while no
    replica is ready; `execution_s` only while it is at replicas.
    """

    held_s: float = math.inf
    cold_start_s: float = math.inf
    execution_s: float = math.inf


FOR_EVER: Final = Patience()


class Call:
    """A valid request; `path` and `body` are what a replica gets to see of it.

    `arrived_at` is unix seconds; `wants_progress` asks a held stream to begin at once;
    of one tenant's held calls those with lower `priority` go first, then those that are held for
    the shortest time; calls of one `affinity` should meet at one replica. `sequences` is how many
    a replica makes of it.
    """

    __slots__ = (
        "affinity",
        "arrived_at",
        "body",
        "is_streaming",
        "path",
        "patience",
        "priority",
        "request_id",
        "sequences",
        "tenant",
        "tokens",
        "wants_progress",
    )

    def __init__(
        self,
        request_id: RequestId,
        path: str,
        body: bytes,
        is_streaming: bool,
        wants_progress: bool,
        arrived_at: float,
        tenant: TenantName,
        tokens: TokenCount,
        priority: int = 0,
        patience: Patience = FOR_EVER,
        affinity: int | None = None,
        sequences: int = 1,
    ) -> None:
        self.request_id: Final = request_id
        self.path: Final = path
        self.body: Final = body
        self.is_streaming: Final = is_streaming
        self.wants_progress: Final = wants_progress
        self.arrived_at: Final = arrived_at
        self.tenant: Final = tenant
        self.tokens: Final = tokens
        self.priority: Final = priority
        self.patience: Final = patience
        self.affinity: Final = affinity
        self.sequences: Final = sequences


class Downstream(Protocol):
    """The client's side of a call; nothing here waits, and nothing here raises.

    A client that is too slow for what it is sent pauses the exchange. Each call ends with one
    `finish` or one `fail`, unless the client has left before.
    """

    @property
    def has_started(self) -> bool:
        """Whether the head is out: from then on an error cannot change the status."""
        ...

    def start(self, status: int, headers: Sequence[Header]) -> None:
        """Sends the head, once; it may go out with what follows it."""
        ...

    def send(self, data: bytes) -> None:
        """Sends a part of the body."""
        ...

    def finish(self, data: bytes = b"") -> None:
        """Sends the last part of the body: the call is answered."""
        ...

    def fail(self, error: Exception) -> None:
        """There is no answer, or no more of it: a PlatformError or ReplicaRefused says why."""
        ...


class ReplicaRefused(Exception):
    """The replica answered with a problem of its own after the client's head was out."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem

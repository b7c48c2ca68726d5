"""One accepted request, the client that made it, and the answers that are not errors of ours."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from infra.contracts.base import RequestId
from infra.contracts.problem import Problem

Header = tuple[bytes, bytes]


class Call(NamedTuple):
    """A valid request; `path` and `body` are what a replica gets to see of it.

    `arrived_at` is unix seconds; `wants_progress` asks a held stream to begin at once.
    """

    request_id: RequestId
    path: str
    body: bytes
    is_streaming: bool
    wants_progress: bool
    arrived_at: float


class Downstream(Protocol):
    """The client's side of a call. When the client leaves, the task that serves it is cancelled."""

    @property
    def has_started(self) -> bool:
        """Whether the head is out: from then on an error cannot change the status."""
        ...

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        """Sends the head, once."""
        ...

    async def send(self, data: bytes) -> None:
        """Sends a part of the body; returns when the client can take more."""
        ...

    async def finish(self, data: bytes = b"") -> None:
        """Sends the last part of the body, once."""
        ...


class ReplicaRefused(Exception):
    """The replica answered with a problem of its own after the client's head was out."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem

"""The port through which a request reaches a replica."""

from typing import Final, Protocol

from control_plane.fleet.replica import Endpoint
from infra.contracts.base import ReplicaId, RequestId
from infra.contracts.tenancy import TenantName

Headers = tuple[tuple[bytes, bytes], ...]


class ReplicaGone(Exception):
    """The replica cannot be reached, or its connection broke before the answer was whole."""


class ReplicaUnreachable(ReplicaGone):
    """There was no connection to the replica: it has seen nothing of the request."""


class ReplicaRequest:
    """What is sent: a JSON body to POST to a path of the replica, for whom and how long."""

    __slots__ = ("body", "path", "request_id", "tenant", "timeout_s")

    def __init__(
        self, request_id: RequestId, path: str, body: bytes, tenant: TenantName, timeout_s: float
    ) -> None:
        self.request_id: Final = request_id
        self.path: Final = path
        self.body: Final = body
        self.tenant: Final = tenant
        self.timeout_s: Final = timeout_s


class Reader(Protocol):
    """Who an answer is for: `head` once, `body` as often as bytes come, then `end`; or `gone`.

    Nothing is called before the call that sent the request has returned, and nothing after `end`,
    `gone` or an abort.
    """

    def head(self, status: int, headers: Headers) -> None:
        """The head of the answer; names of headers are lower-case."""
        ...

    def body(self, data: bytes) -> None:
        """At least one byte of the body."""
        ...

    def end(self) -> None:
        """The answer is whole."""
        ...

    def gone(self, why: ReplicaGone) -> None:
        """There is no answer, or it broke off."""
        ...


class Sending(Protocol):
    """A request on its way and its answer on the way back."""

    def pause(self) -> None:
        """Holds the replica back: little comes before `resume`."""
        ...

    def resume(self) -> None:
        """Lets the replica go on."""
        ...

    def abort(self) -> None:
        """Ends the exchange; before the answer is whole, the replica sees its caller leave at
        once. May be repeated, and after the end it does nothing."""
        ...


class ReplicaClient(Protocol):
    """Carries requests to replicas. Everything happens on one event loop."""

    def send(self, endpoint: Endpoint, request: ReplicaRequest, reader: Reader) -> Sending:
        """Sends; the reader is told all that follows.

        It may be repeated on any replica: a generation that nobody read did nothing.
        """
        ...

    def forget(self, replica_id: ReplicaId) -> None:
        """The replica is over: drops what is kept for it.

        Exchanges still running get a moment for what is on its way, then they break.
        """
        ...

    async def close(self) -> None:
        """Breaks every exchange and frees every connection."""
        ...

"""The port through which a request reaches a replica."""

from typing import NamedTuple, Protocol

from control_plane.fleet.replica import Endpoint
from infra.contracts.base import ReplicaId, RequestId
from infra.contracts.tenancy import TenantName

Headers = tuple[tuple[bytes, bytes], ...]


class ReplicaGone(Exception):
    """The replica cannot be reached, or its connection broke before the answer was whole."""


class ReplicaRequest(NamedTuple):
    """What is sent: a JSON body to POST to a path of the replica, for whom and how long."""

    request_id: RequestId
    path: str
    body: bytes
    tenant: TenantName
    timeout_s: float


class ReplicaResponse(Protocol):
    """An answer whose head has arrived; `headers` have lower-case names."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Headers: ...

    async def read(self) -> bytes:
        """The bytes of the body that have arrived, at least one; b"" once it is whole.

        The replica is held back while nobody reads. Raises ReplicaGone when the answer breaks off.
        """
        ...

    def close(self) -> None:
        """Ends the exchange; before the body is whole, the replica sees its caller leave at once.

        Must be called once or more, however the exchange went.
        """
        ...


class ReplicaClient(Protocol):
    """Carries requests to replicas. Everything happens on one event loop."""

    async def send(self, endpoint: Endpoint, request: ReplicaRequest) -> ReplicaResponse:
        """Sends and waits for the head of the answer; raises ReplicaGone.

        Cancelling it aborts the exchange. It may be repeated on any replica: a generation that
        nobody read did nothing.
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

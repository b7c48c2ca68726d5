"""What a node asks of the control plane: the port."""

from typing import Protocol

from infra.contracts.base import NodeId
from infra.contracts.node import (
    ClockReading,
    DesiredState,
    NodeLease,
    NodeRegistration,
    NodeReport,
)


class UnknownNode(Exception):
    """The control plane has no such node, or its lease ran out: register again."""


class Unreachable(Exception):
    """The control plane does not answer, or answers with an error; try again later."""


class ControlPlane(Protocol):
    """Every call may be repeated; each raises UnknownNode or Unreachable."""

    @property
    def address(self) -> str | None:
        """From which address of this machine it was reached last; None before the first time."""

    async def register(self, registration: NodeRegistration) -> NodeLease:
        """Introduces the node, with the replicas it already runs."""

    async def desired(self, node_id: NodeId, *, after: int, wait_s: float) -> DesiredState:
        """The desired state, as soon as its version exceeds `after`, or after `wait_s`."""

    async def report(self, report: NodeReport) -> ClockReading:
        """Delivers news; calls may overlap, and arrive in the order in which they were made.

        The control plane's clock, read as it heard them.
        """

    async def close(self) -> None:
        """Closes the connections."""

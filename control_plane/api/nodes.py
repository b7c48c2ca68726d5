"""Routes of node agents: register, watch the desired state, report."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from control_plane.api.services import Services
from control_plane.fleet.node_sessions import LONGEST_WAIT_S
from infra.contracts.base import NodeId
from infra.contracts.node import (
    ClockReading,
    DesiredState,
    NodeLease,
    NodeRegistration,
    NodeReport,
)
from infra.errors import Invalid

Id = Annotated[NodeId, Path(max_length=256)]


def nodes_router(services: Services) -> APIRouter:
    """The routes below /internal."""
    router = APIRouter(prefix="/internal/nodes", tags=["internal"])

    @router.post("")
    async def register(registration: NodeRegistration) -> NodeLease:
        """A node introduces itself, with what already runs on it."""
        return services.sessions.register(registration, now=services.clock.now())

    @router.get("/{node_id}/desired")
    async def desired(
        node_id: Id,
        after: int = -1,
        wait_s: Annotated[float, Query(ge=0, le=LONGEST_WAIT_S)] = 0,
    ) -> DesiredState:
        """The node's desired state once its version is not `after`, or after `wait_s`."""
        return await services.sessions.desired(node_id, after, wait_s)

    @router.post("/{node_id}/reports")
    async def report(node_id: Id, report: NodeReport) -> ClockReading:
        """News from a node, which renews its lease; answered with our clock."""
        if report.node_id != node_id:
            raise Invalid(f"the report is of node {report.node_id}", param="node_id")
        return services.sessions.report(report, now=services.clock.now())

    return router

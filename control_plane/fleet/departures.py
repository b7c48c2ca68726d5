"""When replicas on a node that will be taken away take nothing new; pure."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from control_plane.fleet.patience import Patience
from control_plane.fleet.replica import Replica
from infra.contracts.base import NodeId
from infra.contracts.node import Leaving
from infra.contracts.revision import ReplicaState


class Drain(NamedTuple):
    """A replica to drain, and how long its requests may take."""

    replica: Replica
    deadline_s: float
    detail: str


def due_to_drain(
    replicas: Iterable[Replica],
    leaving: Mapping[NodeId, Leaving],
    *,
    are_replaced: bool,
    patience: Patience,
    now: float,
) -> Iterator[Drain]:
    """Of a revision's replicas those that serve on such nodes and are replaced by others, or whose
    node's time is needed for their requests to end."""
    for replica in replicas:
        departure = leaving.get(replica.node_id)
        if departure is None or replica.state is not ReplicaState.READY:
            continue
        left_s = math.inf if departure.at is None else max(0.0, departure.at - now)
        if are_replaced or left_s <= patience.leave_margin_s:
            deadline_s = min(replica.revision.spec.timeouts.execution, left_s)
            detail = f"node {replica.node_id} leaves: {departure.reason}"
            yield Drain(replica, deadline_s, detail)

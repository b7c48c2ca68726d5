"""Bugs of other platforms with who a replica is."""

import asyncio

from infra.contracts.base import ReplicaId, RevisionName
from infra.contracts.node import NodeReport, ReplicaReport
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Rung
from tests.api.world import EdgeWorld, scenario
from tests.fleet.world import LOCAL


@scenario
async def test_dynamo_12591_a_replica_under_a_stale_name_freezes_nothing(edge: EdgeWorld) -> None:
    """dynamo#12591: restored workers told the name they were saved under, and scaling froze."""
    world = edge.world
    await edge.chat()
    [replica] = world.fleet.replicas()
    stale = tuple(
        ReplicaReport(
            replica_id=ReplicaId(name),
            revision=RevisionName("chat@1"),
            state=ReplicaState.READY,
            from_rung=Rung.WEIGHTS,
            host="127.0.0.1",
            port=1,
        )
        for name in ("chat-1-restored", "chat-1-restored", replica.replica_id)
    )

    for _ in range(3):
        report = NodeReport(node_id=LOCAL, standby_ready=0, replicas=stale)
        world.sessions.report(report, now=world.now())
        assert [it.replica_id for it in world.fleet.replicas()] == [replica.replica_id]
        await asyncio.sleep(1)

    assert [it.replica_id for it in world.fleet.replicas()] == [replica.replica_id]
    assert world.fleet.desired_state(LOCAL).replicas == (replica.assignment(),)
    assert (await edge.chat()).status == 200
    await world.until(lambda: not world.alive(), seconds=7200)
    assert (await edge.chat()).status == 200, "it still scales"

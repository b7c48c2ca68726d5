import asyncio
from typing import Any

import pytest

from control_plane.capacity.port import Ended
from control_plane.fleet.logbook import LogEntry
from control_plane.fleet.node_sessions import LeaseTerms
from infra.contracts.base import ModelName, NodeId, ReplicaId, RevisionName
from infra.contracts.node import ClockReading, LogLine, NodeRegistration, NodeReport
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Rung, Stage, StageTiming
from infra.errors import Conflict, Invalid, NotFound, ShuttingDown
from tests.fleet.makers import CHAT, N1, a_registration
from tests.fleet.test_replica import a_report
from tests.fleet.world import World, run

READY, LOST = ReplicaState.READY, ReplicaState.LOST
CHAT1 = RevisionName("chat@1")


def a_node_report(node: str = "n1", **changes: Any) -> NodeReport:
    return NodeReport.model_validate({"node_id": node, "standby_ready": 0} | changes)


def test_a_poll_is_answered_in_the_instant_the_desired_state_changes():
    async def main() -> None:
        world = World()
        world.sessions.register(a_registration(), now=world.now())
        revision = await world.deploy()
        first = await world.sessions.desired(N1, 0, 20)
        poll = asyncio.create_task(world.sessions.desired(N1, first.version, 20))
        await asyncio.sleep(3)
        asked_at = world.now()
        world.reconciler.set_desired(revision, 1, "test")
        answer = await poll
        assert world.now() == asked_at
        assert answer.version > first.version
        assert [it.revision for it in answer.replicas] == ["chat@1"]

    run(main())


def test_a_poll_without_news_is_answered_with_the_same_version_in_the_end():
    async def main() -> None:
        world = World()
        world.sessions.register(a_registration(), now=world.now())
        first = await world.sessions.desired(N1, 0, 20)
        began_at = world.now()
        assert await world.sessions.desired(N1, first.version, 20) == first
        assert world.now() - began_at == pytest.approx(20)
        assert await world.sessions.desired(N1, first.version, 0) == first

    run(main())


def test_a_poll_with_a_version_of_another_life_is_answered_at_once():
    async def main() -> None:
        world = World()
        world.sessions.register(a_registration(), now=world.now())
        began_at = world.now()
        await world.sessions.desired(N1, 10**15, 20)
        assert world.now() == began_at

    run(main())


def test_a_node_that_is_not_registered_is_told_so():
    async def main() -> None:
        world = World()
        with pytest.raises(NotFound):
            await world.sessions.desired(N1, 0, 20)
        with pytest.raises(NotFound):
            world.sessions.report(a_node_report(), now=world.now())

    run(main())


def test_a_poll_learns_that_its_node_has_left():
    async def main() -> None:
        world = World()
        world.sessions.register(a_registration(), now=world.now())
        version = (await world.sessions.desired(N1, 0, 0)).version
        poll = asyncio.create_task(world.sessions.desired(N1, version, 20))
        await asyncio.sleep(1)
        world.sessions.heard(Ended(N1, "killed"))
        with pytest.raises(NotFound):
            await poll

    run(main())


def test_a_cancelled_poll_leaves_nothing_behind():
    async def main() -> None:
        world = World()
        world.sessions.register(a_registration(), now=world.now())
        version = (await world.sessions.desired(N1, 0, 0)).version
        poll = asyncio.create_task(world.sessions.desired(N1, version, 20))
        await asyncio.sleep(1)
        poll.cancel()
        await asyncio.wait((poll,))
        assert world.sessions._polls == {}

    run(main())


def test_reports_renew_the_lease_and_silence_ends_it():
    async def main() -> None:
        world = World(terms=LeaseTerms(lease_s=10, look_s=1))
        world.sessions.register(a_registration(), now=0)
        for second in range(1, 26):
            if second <= 15:
                world.sessions.report(a_node_report(standby_ready=3), now=second)
            assert world.sessions.expire(second) == ()
        assert world.fleet.nodes()[0].standby_ready == 3
        assert world.sessions.expire(26) == (N1,)
        assert world.fleet.nodes() == ()

    run(main())


@pytest.mark.parametrize("jump_s", [3600, -3600, 30])
def test_a_jump_of_the_clock_or_a_stall_of_ours_expires_nobody(jump_s: float):
    async def main() -> None:
        world = World(terms=LeaseTerms(lease_s=10, look_s=1))
        start = 10_000.0
        world.sessions.register(a_registration(), now=start)
        world.sessions.expire(start)
        world.sessions.expire(start + 1)
        jumped = start + 1 + jump_s
        assert world.sessions.expire(jumped) == ()
        lost: list[NodeId] = []
        for second in range(1, 12):
            lost += world.sessions.expire(jumped + second)
        assert lost == [N1]  # a node that stays silent still goes, one lease later

    run(main())


def test_an_agent_that_started_again_has_lost_what_it_does_not_name():
    async def main() -> None:
        world = World()
        async with world:
            await world.deploy(scaling={"min": 1})
            await world.until(lambda: world.alive() == [READY])
            first = world.fleet.replicas()[0].replica_id
            await world.machine().restart_agent()
            await asyncio.sleep(0.001)
            await world.until(lambda: world.alive() == [READY])
            lost = world.fleet.replica(first)
            assert lost is not None and lost.state is LOST

    run(main())


def test_a_replica_not_taken_yet_survives_its_agents_restart():
    async def main() -> None:
        world = World()
        world.sessions.register(a_registration(), now=world.now())
        revision = await world.deploy()
        world.reconciler.set_desired(revision, 1, "test")
        before = world.fleet.replicas()
        world.sessions.register(a_registration(), now=world.now())
        assert world.fleet.replicas() == before

    run(main())


def test_a_control_plane_that_restarts_adopts_what_runs_and_starts_nothing_twice():
    async def main() -> None:
        world = World()
        await world.deploy(scaling={"min": 1})
        stages = (StageTiming(stage=Stage.RUNTIME, started_at=5.0, seconds=1.0),)
        running = a_report(READY, replica_id="chat-1-x", host="h", port=1, stages=stages)
        world.sessions.register(a_registration(replicas=(running,)), now=world.now())
        assert [it.replica_id for it in world.fleet.ready(CHAT1)] == ["chat-1-x"]
        assert [it.replica_id for it in world.fleet.replicas()] == ["chat-1-x"]
        adopted = world.fleet.replica(ReplicaId("chat-1-x"))
        assert adopted is not None and adopted.token == world.fleet.ready(CHAT1)[0].token
        assert adopted.from_rung is Rung.RUNTIME

    run(main())


def test_replicas_of_every_revision_in_traffic_are_adopted_and_of_no_other():
    async def main() -> None:
        world = World()
        for most in (1, 2, 3):
            await world.deploy(scaling={"max": most})
        percents = {RevisionName("chat@1"): 40, RevisionName("chat@3"): 60}
        await world.deployments.split(ModelName("chat"), percents)
        running = tuple(
            a_report(READY, replica_id=f"r{number}", revision=f"chat@{number}", host="h", port=1)
            for number in (1, 2, 3)
        )
        world.sessions.register(a_registration(replicas=running), now=world.now())
        assert [it.replica_id for it in world.fleet.replicas()] == ["r1", "r3"]

    run(main())


def test_an_adopted_replica_that_nobody_asks_for_reaches_zero():
    async def main() -> None:
        world = World()
        async with world:
            await world.deploy(scaling={"grace": 10})
            running = a_report(READY, replica_id="chat-1-x", host="h", port=1)
            world.sessions.register(a_registration("n2", replicas=(running,)), now=world.now())
            await asyncio.sleep(5)
            assert world.alive() == [READY]
            await world.until(lambda: world.alive() != [READY], seconds=7)

    run(main())


@pytest.mark.parametrize("revision", ["chat@7", "unknown@1", "nonsense"])
def test_what_is_not_deployed_is_not_adopted_and_thereby_ended(revision: str):
    async def main() -> None:
        world = World()
        await world.deploy()
        running = a_report(READY, replica_id="x", revision=revision, host="h", port=1)
        world.sessions.register(a_registration(replicas=(running,)), now=world.now())
        assert world.fleet.replicas() == ()
        assert (await world.sessions.desired(N1, 0, 0)).replicas == ()

    run(main())


def test_a_lost_replica_that_comes_back_with_its_node_is_ended():
    async def main() -> None:
        world = World()
        await world.deploy()
        running = a_report(READY, replica_id="chat-1-x", host="h", port=1)
        world.sessions.register(a_registration(replicas=(running,)), now=world.now())
        world.sessions.heard(Ended(N1, "silent"))
        world.sessions.register(a_registration(replicas=(running,)), now=world.now())
        assert "chat-1-x" not in [it.replica_id for it in world.fleet.replicas()]

    run(main())


def test_a_nodes_log_lines_reach_the_models_logbook():
    async def main() -> None:
        world = World()
        async with world:
            await world.deploy()
            request = world.request(seconds=5)
            await world.until(lambda: world.alive() == [READY])
            replica_id = world.fleet.replicas()[0].replica_id
            world.machine().log(replica_id, "hello")
            assert LogEntry(world.now(), replica_id, "hello") in world.logbook.last(CHAT)
            stray = LogLine(at=1, replica_id=replica_id, revision=CHAT1, text="stray")
            world.sessions.register(a_registration("n2"), now=world.now())
            world.sessions.report(a_node_report("n2", logs=(stray,)), now=world.now())
            assert "stray" not in [entry.text for entry in world.logbook.last(CHAT)]
            await request

    run(main())


def test_hostile_reports_change_nothing():
    async def main() -> None:
        world = World()
        world.sessions.register(a_registration(), now=world.now())
        stranger = a_report(READY, replica_id="../../etc", host="h", port=-1)
        world.sessions.report(a_node_report(replicas=(stranger,)), now=world.now())
        assert world.fleet.replicas() == ()

    run(main())


def on_machine(boot_id: str, **changes: Any) -> NodeRegistration:
    return a_registration(clock=ClockReading(wall=0, monotonic=0, boot_id=boot_id), **changes)


def test_another_machine_cannot_be_a_node_whose_lease_lives():
    async def main() -> None:
        world = World(terms=LeaseTerms(lease_s=10, look_s=1))
        world.sessions.register(on_machine("first"), now=0)

        with pytest.raises(Conflict, match="another machine"):
            world.sessions.register(on_machine("second"), now=9)
        world.sessions.register(on_machine("first"), now=10)

    run(main())


def test_a_machine_that_was_exchanged_is_the_node_once_the_lease_is_over():
    async def main() -> None:
        world = World(terms=LeaseTerms(lease_s=10, look_s=1))
        world.sessions.register(on_machine("first"), now=0)

        world.sessions.register(on_machine("second"), now=11)

        node = world.fleet.node(N1)
        assert node is not None
        assert node.boot_id == "second"

    run(main())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "0.0.0.0"])
def test_a_node_elsewhere_whose_replicas_nobody_could_reach_is_refused(host):
    async def main() -> None:
        world = World()
        with pytest.raises(Invalid, match=host):
            world.sessions.register(on_machine("elsewhere", host=host), now=0)
        assert world.fleet.nodes() == ()
        ours = world.sessions._read_clock().boot_id
        world.sessions.register(on_machine(ours, host=host), now=0)

    run(main())


def test_a_report_is_answered_with_our_clock():
    async def main() -> None:
        world = World()
        world.sessions.register(a_registration(), now=world.now())
        await asyncio.sleep(3)

        reading = world.sessions.report(a_node_report(), now=world.now())

        assert reading.wall == world.now()

    run(main())


def test_who_polls_as_the_platform_stops_is_answered_and_then_refused():
    async def main() -> None:
        world = World()
        world.sessions.register(a_registration(), now=0)
        version, began = world.fleet.desired_state(N1).version, world.now()
        poll = asyncio.create_task(world.sessions.desired(N1, version, 60))
        await asyncio.sleep(1)

        world.sessions.close()

        assert (await poll).version == version
        assert world.now() - began < 60
        with pytest.raises(ShuttingDown):
            await world.sessions.desired(N1, version, 60)

    run(main())

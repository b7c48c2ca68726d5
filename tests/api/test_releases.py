"""A model gets new revisions while requests are held, run and fail: each ends on its own."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from control_plane.capacity.simulated import Script
from infra.contracts.base import ModelName, RevisionName
from infra.contracts.job import JobState
from infra.contracts.revision import ReplicaState
from infra.virtual_time import run_virtual
from tests.activator.world import says
from tests.api.test_jobs import accepted, until_over, until_running, work
from tests.api.world import EdgeWorld, Exchange
from tests.fleet.world import CRASH, SLOW, World

Main = Callable[[EdgeWorld], Coroutine[Any, Any, None]]


def in_world(main: Main) -> None:
    """Runs a test under virtual time, with replicas that climb for 25 s."""

    async def run() -> None:
        async with World(script=SLOW) as world:
            edge = EdgeWorld(world)
            await world.deploy(scaling={"grace": 60})
            await main(edge)
            await edge.settled()
            edge.check()
            await edge.replicas.close()

    run_virtual(run())


def start_chat(edge: EdgeWorld) -> Exchange:
    return edge.start(
        "POST",
        "/v1/chat/completions",
        b'{"model":"chat","messages":[{"role":"user","content":"hi"}]}',
    )


def test_the_held_are_served_by_their_own_revision_after_a_deploy():
    async def main(edge: EdgeWorld) -> None:
        held = [start_chat(edge) for _ in range(20)]
        await asyncio.sleep(5)
        await edge.world.deploy(scaling={"grace": 50})
        later = [start_chat(edge) for _ in range(5)]

        for one in (*held, *later):
            await one.done()

        assert {(one.status, one.headers["firstlight-revision"]) for one in held} == {
            (200, "chat@1")
        }
        assert {(one.status, one.headers["firstlight-revision"]) for one in later} == {
            (200, "chat@2")
        }
        await asyncio.sleep(2)
        assert edge.world.fleet.counts(RevisionName("chat@1")).ready == 0, "nobody needs it"

    in_world(main)


def test_who_is_held_for_a_broken_revision_hears_why_although_a_good_one_follows():
    broken = Script(stages=SLOW.stages, fails_after=2, failure=CRASH)

    async def main(edge: EdgeWorld) -> None:
        edge.world.capacity._script = lambda it: broken if it.revision == "chat@1" else Script()
        held = [start_chat(edge) for _ in range(3)]
        await asyncio.sleep(5)
        await edge.world.deploy(scaling={"grace": 50})
        later = start_chat(edge)

        for one in (*held, later):
            await one.done()

        assert later.status == 200
        for one in held:
            problem = one.problem()
            assert (one.status, problem["type"]) == (503, "/problems/replica-failed")
            assert "chat@1" in problem["detail"] and "out of memory" in problem["detail"]
        await asyncio.sleep(60)
        assert edge.world.fleet.of_revision(RevisionName("chat@1")) == ()
        assert edge.world.autoscaler.decisions(RevisionName("chat@1")) == ()

    in_world(main)


def test_a_replica_of_a_former_revision_that_dies_is_replaced_for_those_it_served():
    async def main(edge: EdgeWorld) -> None:
        edge.script = says("hello", seconds=100)
        running = start_chat(edge)
        await edge.world.until(lambda: edge.replicas.running)
        await edge.world.deploy(scaling={"grace": 50})
        edge.script = says("again")
        edge.world.machine().crash(edge.world.fleet.replicas()[0].replica_id)

        await running.done()

        assert (running.status, running.headers["firstlight-revision"]) == (200, "chat@1")
        assert len(edge.world.moves(ReplicaState.FAILED)) == 1

    in_world(main)


def test_only_a_deletion_sends_the_held_away_whatever_their_revision():
    async def main(edge: EdgeWorld) -> None:
        held = [start_chat(edge)]
        await asyncio.sleep(5)
        await edge.world.deploy(scaling={"grace": 50})
        held.append(start_chat(edge))
        await asyncio.sleep(5)
        await edge.world.deployments.delete(ModelName("chat"), now=edge.world.now())
        await edge.world.deploy()

        for one in held:
            await one.done()
            assert (one.status, one.problem()["type"]) == (404, "/problems/model-not-found")
        assert (await edge.chat()).headers["firstlight-revision"] == "chat@3"
        assert edge.world.fleet.of_revision(RevisionName("chat@1")) == ()

    in_world(main)


def test_a_job_runs_on_the_revision_picked_at_its_start_and_not_at_its_acceptance():
    async def main(edge: EdgeWorld) -> None:
        edge.script = says("hello", seconds=10)
        first = await accepted(edge)
        await edge.world.deploy(scaling={"grace": 50})
        work(edge)
        await until_running(edge)
        await edge.world.deploy(scaling={"grace": 40})

        status = await until_over(edge, first)

        assert status.state is JobState.SUCCEEDED
        [sent] = edge.replicas.sent
        assert sent.replica_id.startswith("chat-2-")
        assert len(edge.world.moves(ReplicaState.READY)) == 1

    in_world(main)

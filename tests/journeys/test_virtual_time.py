"""The three journeys in one process: real edge, real control plane, simulated machines and time."""

import asyncio
import random

import pytest

from infra.virtual_time import run_virtual
from tests.api.world import EdgeWorld
from tests.fleet.makers import SOURCE
from tests.fleet.world import World

SPEC = {"name": "chat", "source": SOURCE, "scaling": {"grace": 60}}
INVOKE = "/v1/models/chat/invoke"
PROMPT = {"prompt": "hello"}


async def deployed(edge: EdgeWorld, **scaling: object) -> None:
    answer = await edge.call(
        "PUT",
        "/v1/models/chat",
        {**SPEC, "scaling": {"grace": 60, **scaling}},
        headers={"content-type": "application/json"},
    )
    assert answer.status == 202, answer.text


async def status(edge: EdgeWorld) -> dict[str, object]:
    return dict((await edge.call("GET", "/v1/models/chat")).json())


def test_deploy_invoke_from_zero_idle_back_to_zero_and_delete() -> None:
    async def journey() -> None:
        async with World() as world:
            edge = EdgeWorld(world)
            await deployed(edge)
            assert (await status(edge))["state"] == "idle"

            cold = await edge.call("POST", INVOKE, PROMPT)

            assert cold.status == 200
            assert cold.headers["firstlight-cold-start"] == "true"
            reports = (await edge.call("GET", "/v1/models/chat/coldstarts")).json()["data"]
            assert len(reports) == 1
            explained_s = sum(share["seconds"] for share in reports[0]["shares"])
            assert explained_s + reports[0]["unattributed_s"] == pytest.approx(
                reports[0]["ttft_s"], abs=1e-9
            )
            assert reports[0]["unattributed_s"] <= 0.005

            await asyncio.sleep(59)
            assert (await status(edge))["state"] == "ready", "its grace is not over"
            await asyncio.sleep(10)
            idle = await status(edge)
            assert (idle["state"], idle["replicas"], idle["desired_replicas"]) == ("idle", [], 0)

            gone = await edge.call("DELETE", "/v1/models/chat")
            assert gone.status == 204
            assert (await edge.call("POST", INVOKE, PROMPT)).status == 404
            edge.check()

    run_virtual(journey())


def test_five_hundred_requests_at_zero_cause_one_wake() -> None:
    async def journey() -> None:
        async with World() as world:
            edge = EdgeWorld(world)
            await deployed(edge)

            answers = await asyncio.gather(*(edge.call("POST", INVOKE, PROMPT) for _ in range(500)))

            assert {answer.status for answer in answers} == {200}
            assert world.started() == 1
            sent = [it.request.request_id for it in edge.replicas.sent]
            asked = [answer.headers["firstlight-request-id"] for answer in answers]
            assert sent == asked, "first come, first served"
            edge.check()

    run_virtual(journey())


@pytest.mark.real
def test_a_day_of_rare_calls_loses_none_and_ends_at_zero() -> None:
    async def journey() -> None:
        async with World() as world:
            edge = EdgeWorld(world)
            await deployed(edge)
            dice = random.Random(7)
            for _ in range(300):
                await asyncio.sleep(dice.expovariate(1 / 288))
                answer = await edge.call("POST", INVOKE, PROMPT)
                assert answer.status == 200
                for machine in world.capacity.machines():
                    for replica in machine.replicas():
                        if dice.random() < 0.1:
                            machine.crash(replica.replica_id)

            await asyncio.sleep(120)

            assert (await status(edge))["state"] == "idle"
            assert world.alive() == []
            assert world.started() > 100, "many calls were cold"
            edge.check()

    run_virtual(journey())

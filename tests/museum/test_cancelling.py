"""Bugs of other engines with who has left: nothing is computed for nobody."""

import asyncio

import orjson

from tests.activator.world import says
from tests.api.world import CHAT, EdgeWorld, scenario
from tests.engine.test_scheduler import Driver


@scenario
async def test_pegainfer_642_who_left_while_held_reaches_no_replica(edge: EdgeWorld) -> None:
    """pegainfer#642: a request cancelled while it waited was still prefilled."""
    edge.script = says("hello", seconds=1)
    await edge.world.deploy("chat", limits={"max_concurrency": 1}, scaling={"max": 1})
    runs = edge.start("POST", "/v1/chat/completions", orjson.dumps(CHAT))
    await edge.world.until(lambda: edge.replicas.running)
    waits = edge.start("POST", "/v1/chat/completions", orjson.dumps(CHAT))
    await edge.settled()

    await waits.leave()
    await runs.done()
    await asyncio.sleep(10)

    assert runs.status == 200
    assert [it.request.request_id for it in edge.replicas.sent] == [
        runs.headers["firstlight-request-id"]
    ]


def test_pegainfer_642_who_left_the_engines_queue_is_not_prefilled() -> None:
    """pegainfer#642: the scheduler admitted a request that had been cancelled."""
    driver = Driver(max_running=1)
    driver.add("runs", 2)
    driver.add("leaves", 6)
    driver.add("stays", 3)
    driver.step()

    driver.remove("leaves")
    driver.remove("runs")

    assert driver.step() == {"stays": (0, 3)}
    driver.remove("stays")

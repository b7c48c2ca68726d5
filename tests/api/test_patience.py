"""The headers with which a client says how long it waits."""

import asyncio

import orjson
import pytest

from control_plane.activator.call import Patience
from control_plane.api.patience import patience_of
from infra.errors import Invalid
from tests.activator.world import says
from tests.api.world import CHAT, EdgeWorld, scenario

PATH = "/v1/chat/completions"


def test_a_client_that_says_nothing_waits_as_long_as_the_model_lets_it() -> None:
    assert patience_of({}) == Patience()


def test_each_header_is_seconds_of_its_own() -> None:
    headers = {b"firstlight-cold-start-timeout": b"2.5", b"firstlight-timeout": b"30"}

    assert patience_of(headers) == Patience(cold_start_s=2.5, execution_s=30)
    assert patience_of({b"firstlight-wait-timeout": b"7"}) == Patience(held_s=7)


@pytest.mark.parametrize(
    "name", ["Firstlight-Wait-Timeout", "Firstlight-Cold-Start-Timeout", "Firstlight-Timeout"]
)
@pytest.mark.parametrize(
    "value", [b"", b"0", b"0.0", b"-1", b"1e3", b"inf", b"nan", b"5s", b"9" * 99]
)
def test_what_is_not_positive_seconds_is_refused_by_name(name: str, value: bytes) -> None:
    with pytest.raises(Invalid, match=name):
        patience_of({name.lower().encode(): value})


@scenario
async def test_a_malformed_limit_is_a_400_that_wakes_nothing(edge: EdgeWorld) -> None:
    exchange = await edge.call("POST", PATH, CHAT, headers={"firstlight-timeout": "soon"})

    assert exchange.status == 400
    assert exchange.json()["error"]["param"] == "Firstlight-Timeout"
    assert edge.is_asleep()


@scenario
async def test_an_answer_that_takes_longer_than_its_client_waits_is_a_504(edge: EdgeWorld) -> None:
    edge.script = says("late", seconds=50)
    began_at = asyncio.get_running_loop().time()

    exchange = await edge.call("POST", PATH, CHAT, headers={"firstlight-timeout": "3"})

    assert exchange.status == 504
    assert exchange.json()["type"].endswith("execution-timeout")
    assert asyncio.get_running_loop().time() - began_at < 40


@scenario
async def test_a_wait_for_busy_replicas_ends_when_its_client_says(edge: EdgeWorld) -> None:
    edge.script = says("late", seconds=50)
    running = [edge.start("POST", PATH, orjson.dumps(CHAT)) for _ in range(32)]
    await asyncio.sleep(30)
    began_at = asyncio.get_running_loop().time()

    exchange = await edge.call("POST", PATH, CHAT, headers={"firstlight-wait-timeout": "2"})

    assert exchange.status == 504
    assert exchange.json()["type"].endswith("queue-timeout")
    assert asyncio.get_running_loop().time() - began_at == pytest.approx(2, abs=0.01)
    for one in running:
        await one.done()

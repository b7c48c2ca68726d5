"""Bugs of other platforms that count requests: what is counted up is counted down."""

import asyncio

import orjson
import pytest

from control_plane.activator.memory_client import Wire
from control_plane.activator.replica_client import ReplicaRequest
from control_plane.capacity.simulated.script import Script
from infra.contracts.base import ModelName
from infra.contracts.revision import ReplicaState
from tests.activator.world import says, streams
from tests.api.world import CHAT, EdgeWorld, Exchange, scenario
from tests.fleet.world import SLOW, World, run

INVOKE = "/v1/chat/completions"


def call(edge: EdgeWorld, model: str = "chat", **changes: object) -> Exchange:
    return edge.start("POST", INVOKE, orjson.dumps(CHAT | {"model": model} | changes))


async def load(edge: EdgeWorld) -> tuple[float, float, str]:
    """In flight and waiting, as the autoscaler and as /metrics have it."""
    demand = edge.lines.demand_of(ModelName("chat"))
    metrics = (await edge.call("GET", "/metrics")).text
    told = [it for it in metrics.splitlines() if it.startswith("firstlight_waiting{")]
    return demand.in_flight, demand.waiting, " ".join(it.rpartition(" ")[2] for it in told)


@scenario
async def test_ray_38118_what_waited_is_not_counted_for_ever(edge: EdgeWorld) -> None:
    """ray#38118: a handle's queued counter stayed at 42, and replicas were started for nobody."""
    await edge.world.deploy("chat", scaling={"grace": 5}, limits={"max_concurrency": 4})
    edge.world.capacity.next_scripts.extend([Script(lives_s=0.5), Script(fails_after=1)])
    tries = iter(range(1000))

    async def fails_at_times(request: ReplicaRequest, wire: Wire) -> None:
        if next(tries) % 3 == 0:
            wire.break_off("it failed before its first byte")
        else:
            await streams(20, seconds=0.3)(request, wire)

    edge.script = fails_at_times
    held = [call(edge, stream=True) for _ in range(42)]
    for number, exchange in enumerate(held):  # they leave held, dispatched, in mid stream
        await asyncio.sleep(0.1)
        if number % 2:
            await exchange.leave()
    for exchange in held:
        await exchange.done()

    assert await load(edge) == (0, 0, "0.0")
    await edge.world.until(lambda: not edge.world.alive())
    started = edge.world.started()
    await asyncio.sleep(6 * 3600)
    assert edge.world.started() == started, "nothing is started for nobody"


@scenario
async def test_ray_59076_a_minimum_of_zero_is_heeded_after_a_deployment(edge: EdgeWorld) -> None:
    """ray#59076: from one version on, min_replicas 0 was ignored."""
    await edge.world.deploy("chat", scaling={"min": 1, "grace": 1})
    await edge.world.until(lambda: edge.world.alive() == [ReplicaState.READY])
    await edge.chat()

    await edge.world.deploy("chat", scaling={"min": 0, "grace": 1})
    assert (await edge.chat()).headers["firstlight-revision"] == "chat@3"

    await edge.world.until(lambda: not edge.world.alive(), seconds=10)


def test_ray_59076_a_minimum_of_zero_is_heeded_by_the_next_control_plane() -> None:
    """ray#59076: the upgraded controller kept what the old one had started."""

    async def main() -> None:
        async with World(script=SLOW) as before:
            await before.deploy(scaling={"grace": 5})
            await before.request()
            survivors = dict(before.machine()._running)
        async with World(script=SLOW) as upgraded:
            await upgraded.deploy(scaling={"grace": 5})
            upgraded.machine()._running = survivors
            upgraded.machine()._register()
            assert upgraded.alive() == [ReplicaState.READY]

            await upgraded.until(
                lambda: upgraded.alive() == [ReplicaState.DRAINING],
                seconds=70,  # its demand is not known before
            )

    run(main())


@scenario
async def test_serverlessllm_12_a_backend_that_raises_is_not_counted_as_busy(
    edge: EdgeWorld,
) -> None:
    """ServerlessLLM roundrobin_router.py: request_count stayed up when the backend raised."""
    turns = iter(range(1000))

    async def raises(request: ReplicaRequest, wire: Wire) -> None:
        match next(turns) % 4:
            case 0:
                wire.break_off("it raised")
            case 1:
                wire.head(500)
            case 2:
                wire.head(200, [(b"content-type", b"text/event-stream")])
                await wire.write(b"data: 1\n\n")
                wire.break_off("it raised in mid stream")
            case _:
                await asyncio.sleep(1e6)

    edge.script = raises
    await edge.world.deploy("chat", scaling={"grace": 5}, timeouts={"execution": 3, "queue": 30})
    exchanges = [call(edge, stream=number % 2 == 0) for number in range(40)]
    for exchange in exchanges:
        await exchange.done()

    assert await load(edge) == (0, 0, "0.0")
    assert not any(map(edge.lines.in_flight, edge.world.fleet.replicas())), "permits are back"
    await edge.world.until(lambda: not edge.world.alive(), seconds=60)


@scenario
async def test_serverlessllm_13_a_warm_model_answers_without_a_pause(edge: EdgeWorld) -> None:
    """ServerlessLLM _load_balancer_loop: a second of sleep before each dispatch, one at a time."""
    edge.script = says("hello", seconds=1)
    await edge.world.deploy("chat", limits={"max_concurrency": 8}, scaling={"max": 1})
    await edge.chat()
    began_at = asyncio.get_running_loop().time()

    for _ in range(50):
        assert (await edge.chat()).status == 200
    together = [call(edge) for _ in range(32)]
    for exchange in together:
        await exchange.done()

    assert {exchange.status for exchange in together} == {200}
    took_s = asyncio.get_running_loop().time() - began_at
    assert took_s == pytest.approx(50 + 32 / 8), "no time passes between two requests"


@scenario
async def test_serverlessllm_14_who_came_first_goes_first_whatever_the_model(
    edge: EdgeWorld,
) -> None:
    """ServerlessLLM fcfs_scheduler.py: sorted by each model's own count, not by arrival."""
    order: list[str] = []

    async def notes(request: ReplicaRequest, wire: Wire) -> None:
        order.append(orjson.loads(request.body)["model"])
        await says("hello", seconds=1)(request, wire)

    edge.script = notes
    needs = {"resources": {"memory_mib": 12 * 1024}, "scaling": {"grace": 0}}
    for name in ("one", "two", "three"):
        await edge.world.deploy(name, **needs)
    exchanges = [call(edge, "one")]
    await edge.world.until(lambda: order)
    exchanges += [call(edge, "two") for _ in range(5)]  # five of two before the first of three
    await asyncio.sleep(0.2)
    exchanges.append(call(edge, "three"))

    for exchange in exchanges:
        await exchange.done()

    assert [exchange.status for exchange in exchanges] == [200] * 7
    assert order == ["one", *["two"] * 5, "three"]


@scenario
async def test_serverlessllm_15_stopping_answers_who_waits(edge: EdgeWorld) -> None:
    """ServerlessLLM roundrobin_router.py: shutdown crashed when requests were waiting."""
    edge.script = streams(20, seconds=0.1)
    await edge.world.deploy("chat", limits={"max_concurrency": 2}, scaling={"max": 1})
    await edge.world.deploy("cold")
    running = [call(edge, stream=True) for _ in range(2)]
    await edge.world.until(lambda: edge.replicas.running == 2)
    edge.world.capacity.next_scripts.append(SLOW)
    waiting = [call(edge, model) for model in ("chat", "cold") for _ in range(10)]
    await edge.settled()

    began_at = asyncio.get_running_loop().time()
    stopping = edge.world.tasks.start(edge.activator.drain(within_s=10), name="drain")

    for exchange in waiting:
        await exchange.done()
    assert asyncio.get_running_loop().time() == began_at, "at once, whatever still runs"
    for exchange in running:
        await exchange.done()
    await stopping
    assert [exchange.status for exchange in running] == [200, 200]
    assert all(exchange.content.count(b"data: ") == 20 for exchange in running)
    assert {exchange.status for exchange in waiting} == {503}
    assert {exchange.problem()["error"]["code"] for exchange in waiting} == {"shutting_down"}
    assert all("retry-after" in exchange.headers for exchange in waiting)


@scenario
async def test_llama_swap_19_another_models_request_ends_none_that_runs(edge: EdgeWorld) -> None:
    """llama-swap#19 and #588: the swap to the other model killed what was in flight."""
    edge.script = streams(100, seconds=0.3)
    needs = {"resources": {"memory_mib": 12 * 1024}, "scaling": {"grace": 3600}}
    for name in ("one", "two"):
        await edge.world.deploy(name, **needs)
    runs = call(edge, "one", stream=True)
    await edge.world.until(lambda: edge.replicas.running)

    swaps = call(edge, "two")
    await runs.done()
    await swaps.done()

    assert runs.content.count(b"data: ") == 100 and b"event: error" not in runs.content
    assert swaps.status == 200

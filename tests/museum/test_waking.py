"""Bugs of other platforms on the way from zero to the first answer."""

import asyncio

import orjson
import pytest

from control_plane.activator.memory_client import Wire
from control_plane.activator.replica_client import ReplicaRequest
from control_plane.capacity.simulated.machine import MachineShape
from control_plane.capacity.simulated.script import Climbing, Script
from infra.contracts.base import ModelName
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Stage
from tests.activator.world import says
from tests.api.world import CHAT, EdgeWorld, Exchange, scenario
from tests.fleet.world import COLD_S

INVOKE = "/v1/chat/completions"
SPAWN_S = MachineShape().spawn_s
REFUSES_S = 0.3  # a port that is announced before anybody listens
TWENTY_MINUTES = Script(
    stages=(
        Climbing(Stage.RUNTIME, 1),
        Climbing(Stage.WEIGHTS, 1200, steps=40),
        Climbing(Stage.ENGINE, 4),
    )
)


def now() -> float:
    return asyncio.get_running_loop().time()


def call(edge: EdgeWorld, **headers: str) -> Exchange:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return edge.start("POST", INVOKE, orjson.dumps(CHAT), headers=named)


@pytest.mark.parametrize("connect_s", [0.0, 0.5, 5.0])
def test_http_add_on_1385_how_long_a_connect_took_is_not_how_long_the_next_one_waits(
    connect_s: float,
) -> None:
    """http-add-on#1385: the connect timeout was the base of the back-off."""

    @scenario
    async def run(edge: EdgeWorld) -> None:
        tries: list[float] = []

        async def fails_once(request: ReplicaRequest, wire: Wire) -> None:
            tries.append(now())
            if len(tries) == 1:
                await asyncio.sleep(connect_s)
                wire.break_off("connect timed out")
                return
            await says("hello")(request, wire)

        edge.script = fails_once

        answer = await edge.chat()

        assert answer.status == 200
        assert tries[1] - tries[0] - connect_s <= 1.0, "the only replica's rest, and no more"

    run()


@pytest.mark.parametrize("idle_s", [45 * 60, 3 * 3600])
def test_http_add_on_1692_a_model_that_was_idle_for_long_wakes_at_once(idle_s: float) -> None:
    """http-add-on#1692: after 30 to 45 idle minutes the metric was gone, and nothing woke."""

    @scenario
    async def run(edge: EdgeWorld) -> None:
        assert (await edge.chat()).status == 200
        await asyncio.sleep(idle_s)
        assert edge.world.alive() == []
        called_at = now()

        answer = await edge.chat()

        assert answer.status == 200
        assert now() - called_at < COLD_S + SPAWN_S + 1e-3, "a machine, a process, and no poll"

    run()


async def never_started(edge: EdgeWorld) -> None: ...


async def idle_since_long(edge: EdgeWorld) -> None:
    await edge.chat()
    await edge.world.until(lambda: not edge.world.alive(), seconds=7200)


async def last_one_drains(edge: EdgeWorld) -> None:
    edge.world.capacity.next_scripts.append(Script(drain_s=60))
    await edge.world.deploy("chat", scaling={"grace": 1})
    await edge.chat()
    await edge.world.until(lambda: edge.world.alive() == [ReplicaState.DRAINING])


async def last_one_died(edge: EdgeWorld) -> None:
    await edge.chat()
    edge.world.machine().crash(edge.world.fleet.replicas()[0].replica_id)


async def agent_starts_again(edge: EdgeWorld) -> None:
    await edge.chat()
    await edge.world.machine().restart_agent()


async def machine_is_gone(edge: EdgeWorld) -> None:
    await edge.chat()
    await edge.world.machine().kill()


async def just_redeployed(edge: EdgeWorld) -> None:
    await edge.chat()
    await edge.world.deploy("chat", scaling={"grace": 77})


@pytest.mark.parametrize(
    "zero",
    [
        never_started,
        idle_since_long,
        last_one_drains,
        last_one_died,
        agent_starts_again,
        machine_is_gone,
        just_redeployed,
    ],
    ids=lambda it: it.__name__,
)
def test_http_add_on_1492_whatever_zero_it_is_a_request_is_held_and_never_a_503(zero) -> None:
    """http-add-on#1492: one way to zero missed the wake path, and requests got a 503 at once."""

    @scenario
    async def run(edge: EdgeWorld) -> None:
        await zero(edge)
        called_at = edge.world.now()

        answers = [call(edge) for _ in range(5)]

        for answer in answers:
            await answer.done()
        assert [answer.status for answer in answers] == [200] * 5
        began_at = min(at for at in edge.world.moves(ReplicaState.ASSIGNED) if at >= called_at)
        assert began_at - called_at < 0.02, "at once, not by the next tick"
        took_s = edge.world.now() - called_at
        assert took_s < COLD_S + SPAWN_S + 0.02, "a machine, a process, and no poll"

    run()


@scenario
async def test_http_add_on_586_readiness_is_told_and_not_polled(edge: EdgeWorld) -> None:
    """http-add-on#586: the pod was ready in 3 s, and a poll noticed it after 20 s."""
    arrived: list[float] = []
    ready: list[float] = []

    async def notes(request: ReplicaRequest, wire: Wire) -> None:
        arrived.append(now())
        await says("hello")(request, wire)

    edge.script = notes
    edge.world.fleet.subscribe(
        lambda before, after: ready.append(now()) if after.state is ReplicaState.READY else None
    )

    for number in range(3):  # ready at other times of any period that a poll could have
        edge.world.capacity.next_scripts.append(
            Script(stages=(Climbing(Stage.RUNTIME, 2.9 + number / 7),))
        )
        assert (await edge.chat()).status == 200
        await edge.world.until(lambda: not edge.world.alive(), seconds=7200)

    assert arrived == ready, "no time passes between"


@scenario
async def test_kserve_1247_a_replica_that_loads_is_not_scaled_to_zero(edge: EdgeWorld) -> None:
    """kserve#1247 (and knative#15316): scaled to zero while pending or loading, for ever anew."""
    await edge.world.deploy("chat", scaling={"grace": 1}, timeouts={"cold_start": 1800})
    edge.world.capacity.next_scripts.append(TWENTY_MINUTES)
    patient, hasty = call(edge), call(edge, firstlight_cold_start_timeout="60")
    await hasty.done()
    assert hasty.status == 504

    await patient.done()

    assert patient.status == 200
    assert edge.world.started() == 1
    assert edge.world.moves(ReplicaState.FAILED) == []


@pytest.mark.parametrize("comes_s", [1190, 1230], ids=["while it loads", "in its grace"])
def test_kserve_1247_nor_when_everybody_has_left_meanwhile(comes_s: float) -> None:
    """kserve#1247: without demand left, the loading pod was deleted, and the next began anew."""

    @scenario
    async def run(edge: EdgeWorld) -> None:
        await edge.world.deploy("chat", scaling={"grace": 30})
        edge.world.capacity.next_scripts.append(TWENTY_MINUTES)
        leaves = call(edge)
        await asyncio.sleep(10)
        await leaves.leave()
        await asyncio.sleep(comes_s - 10)
        late = call(edge)

        await late.done()

        assert late.status == 200
        assert edge.world.started() == 1, "the climb of who left served who came"

    run()


@scenario
async def test_kserve_2882_no_request_reaches_a_model_that_is_not_loaded(edge: EdgeWorld) -> None:
    """kserve#2882: the pod was ready, its model was not, and requests got a 400 "not ready yet"."""
    states: list[ReplicaState] = []

    async def looks(request: ReplicaRequest, wire: Wire) -> None:
        states.extend(edge.world.alive())
        await says("hello")(request, wire)

    edge.script = looks
    edge.world.capacity.next_scripts.append(TWENTY_MINUTES)
    await edge.world.deploy("chat", timeouts={"cold_start": 1800})
    exchanges = []
    for _ in range(12):  # some at every stage of the climb
        exchanges.append(call(edge))
        await asyncio.sleep(110)

    for exchange in exchanges:
        await exchange.done()

    assert {exchange.status for exchange in exchanges} == {200}
    assert set(states) == {ReplicaState.READY}


@scenario
async def test_knative_9888_no_burst_of_502_when_the_first_replica_turns_ready(
    edge: EdgeWorld,
) -> None:
    """knative#9888: everything held was let go at once onto a pod that did not listen yet."""
    at_once = most = 0
    opens_at = float("inf")

    async def opens_late(request: ReplicaRequest, wire: Wire) -> None:
        nonlocal at_once, most, opens_at
        opens_at = min(opens_at, now() + REFUSES_S)
        if now() < opens_at:
            wire.break_off("connection refused")
            return
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.05)
        at_once -= 1
        await says("hello")(request, wire)

    edge.script = opens_late
    await edge.world.deploy("chat", limits={"max_concurrency": 8}, scaling={"max": 1})
    held = [call(edge) for _ in range(300)]

    for exchange in held:
        await exchange.done()

    assert [exchange.status for exchange in held] == [200] * 300
    assert most == 8, "as many at a time as the replica takes"
    assert edge.world.started() == 1


@scenario
async def test_knative_15352_the_cold_start_is_no_part_of_the_time_for_the_answer(
    edge: EdgeWorld,
) -> None:
    """knative#15352: the response-start timeout ran during the cold start."""
    await edge.world.deploy("chat", timeouts={"execution": 5, "queue": 5})
    edge.world.capacity.next_scripts.append(Script(stages=(Climbing(Stage.WEIGHTS, 60),)))
    edge.script = says("hello", seconds=4)
    theirs, ours = call(edge, firstlight_timeout="4.5"), call(edge)

    await theirs.done()
    await ours.done()

    assert (theirs.status, ours.status) == (200, 200)
    demand = edge.lines.demand_of(ModelName("chat"))
    assert demand.waiting == 0

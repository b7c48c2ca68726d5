"""What every provider of machines promises, over all of them."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from control_plane.capacity.port import Ended, LaunchToken, Machine
from infra.contracts.base import NodeId
from infra.contracts.stage import Rung
from infra.errors import BadSpec, NoCapacity
from infra.virtual_time import run_virtual
from tests.capacity import adapters
from tests.capacity.adapters import Adapter, AdapterMaker

Check = Callable[[Adapter], Coroutine[Any, Any, None]]
ONE, TWO = LaunchToken("one"), LaunchToken("two")
NOBODY = NodeId("nobody")


@pytest.fixture(
    params=["static", "simulated", "ec2", pytest.param("local", marks=pytest.mark.real)]
)
def hold_to(
    request: pytest.FixtureRequest, tmp_path: Path, environment: dict[str, str]
) -> Callable[[Check], None]:
    """Runs a check against one provider, in virtual time where its machines allow that."""

    async def main(make: AdapterMaker, check: Check) -> None:
        async with make() as adapter:
            await adapter.capacity.open()
            await check(adapter)
            await adapter.capacity.close()

    def hold(check: Check) -> None:
        if request.param == "local":
            asyncio.run(main(lambda: adapters.local(tmp_path, environment), check))
        else:
            run_virtual(main(getattr(adapters, request.param), check))

    return hold


def running(adapter: Adapter) -> list[NodeId]:
    return [it.node_id for it in elastic(adapter) if it.rung is Rung.NODE]


def in_standby(adapter: Adapter) -> list[NodeId]:
    return [it.node_id for it in elastic(adapter) if it.rung is Rung.STOPPED]


def elastic(adapter: Adapter) -> list[Machine]:
    return [machine for machine in adapter.capacity.describe() if machine.is_elastic]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(600):
        while not condition():  # noqa: ASYNC110 - of virtual time, or of a real process
            await asyncio.sleep(0.02)


def test_a_launch_repeated_with_its_token_gives_the_same_machine(hold_to):
    async def check(adapter: Adapter) -> None:
        if not adapter.most:
            return
        first = await adapter.capacity.launch(adapter.need, token=ONE)
        again = await adapter.capacity.launch(adapter.need, token=ONE)
        assert first == again and running(adapter) == [first]
        other = await adapter.capacity.launch(adapter.need, token=TWO)
        assert sorted(running(adapter)) == sorted([first, other])
        assert {it.kind for it in elastic(adapter)} == {adapter.kind}

    hold_to(check)


def test_who_has_no_machine_says_what_was_tried(hold_to):
    async def check(adapter: Adapter) -> None:
        for number in range(adapter.most):
            await adapter.capacity.launch(adapter.need, token=LaunchToken(f"t{number}"))
        with pytest.raises(NoCapacity) as refused:
            await adapter.capacity.launch(adapter.need, token=LaunchToken("more"))
        assert isinstance(refused.value.facts["tried"], list)
        assert len(running(adapter)) == adapter.most

    hold_to(check)


def test_what_no_machine_could_ever_hold_is_refused_for_good(hold_to):
    async def check(adapter: Adapter) -> None:
        expected = BadSpec if adapter.most else NoCapacity
        with pytest.raises(expected):
            await adapter.capacity.launch(replace(adapter.need, memory_bytes=1 << 60), token=ONE)
        assert elastic(adapter) == []

    hold_to(check)


def test_a_terminated_machine_is_gone_and_may_be_terminated_again(hold_to):
    async def check(adapter: Adapter) -> None:
        await adapter.capacity.terminate(NOBODY)
        if not adapter.most:
            return
        node_id = await adapter.capacity.launch(adapter.need, token=ONE)
        await adapter.capacity.terminate(node_id)
        await adapter.capacity.terminate(node_id)
        await until(lambda: elastic(adapter) == [])

    hold_to(check)


def test_a_stopped_machine_waits_in_standby_and_is_the_one_that_starts(hold_to):
    async def check(adapter: Adapter) -> None:
        await adapter.capacity.stop(NOBODY)
        assert await adapter.capacity.start(adapter.need, token=ONE) is None
        if not adapter.most:
            return
        await adapter.capacity.hold(adapter.kind, 1)
        await until(lambda: adapter.has_standby == bool(in_standby(adapter)))
        if not adapter.has_standby:
            return
        started = None
        async with asyncio.timeout(600):
            while started is None:  # until one is ready
                await asyncio.sleep(1)
                started = await adapter.capacity.start(adapter.need, token=ONE)
        assert running(adapter) == [started]
        assert await adapter.capacity.start(adapter.need, token=ONE) == started
        await asyncio.sleep(60)  # until it is in service
        await adapter.capacity.stop(started)
        await adapter.capacity.stop(started)
        await until(lambda: running(adapter) == [] and len(in_standby(adapter)) == 2)
        assert started in in_standby(adapter)
        await adapter.capacity.hold(adapter.kind, 1)
        await until(lambda: len(in_standby(adapter)) == 1)

    hold_to(check)


def test_standby_grows_and_shrinks_to_what_is_wanted(hold_to):
    async def check(adapter: Adapter) -> None:
        for wanted in (2, 1, 1, 0):
            await adapter.capacity.hold(adapter.kind, wanted)
            expected = wanted if adapter.has_standby else 0
            await until(lambda expected=expected: len(in_standby(adapter)) == expected)

    hold_to(check)


def test_the_end_of_a_machine_is_told_with_its_reason(hold_to):
    async def check(adapter: Adapter) -> None:
        if adapter.kill is None:
            return
        heard: list[object] = []
        adapter.capacity.subscribe(heard.append)
        if adapter.most:
            node_id = await adapter.capacity.launch(adapter.need, token=ONE)
        else:
            node_id = adapter.capacity.describe()[0].node_id
            await asyncio.sleep(1)
        await adapter.kill(node_id)
        await until(lambda: heard)
        assert isinstance(heard[0], Ended) and heard[0].node_id == node_id and heard[0].reason

    hold_to(check)

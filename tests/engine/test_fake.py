"""The scripted engine behaves as the real one's face does."""

import asyncio

import pytest

from infra.errors import ContextLengthExceeded, ReplicaFailed, ShuttingDown
from infra.virtual_time import run_virtual
from tests.engine.tiny import Heard, outputs_of, request
from worker.engine.fake import FakeEngine, Script
from worker.engine.request import GenerationRequest


async def collect(engine: FakeEngine, asked: GenerationRequest) -> list[tuple[str, str | None]]:
    return [(output.text, output.finish_reason) async for output in outputs_of(engine, asked)]


def test_it_plays_its_script_in_time() -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        engine = FakeEngine(Script(("a", "b"), first_delay_s=2, delay_s=1))
        assert await collect(engine, request("r", [1])) == [("a", None), ("b", "stop")]
        assert loop.time() == 3
        assert engine.stats.generated_tokens == 2 and engine.running == set()

    run_virtual(scene())


def test_max_tokens_cuts_the_script() -> None:
    engine = FakeEngine(Script(("a", "b", "c")))
    assert run_virtual(collect(engine, request("r", [1], 2))) == [("a", None), ("b", "length")]


def test_scripts_may_depend_on_the_request_and_fail() -> None:
    def script(asked: GenerationRequest) -> Script:
        return Script(("x",), error=ReplicaFailed(asked.request_id))

    async def scene() -> None:
        engine = FakeEngine(script)
        outputs = outputs_of(engine, request("r", [1]))
        assert (await anext(outputs)).finish_reason is None
        with pytest.raises(ReplicaFailed, match="r"):
            await anext(outputs)
        assert engine.aborted == []

    run_virtual(scene())


def test_leaving_early_is_an_abort() -> None:
    async def scene() -> None:
        engine = FakeEngine()
        outputs = outputs_of(engine, request("r", [1]))
        await anext(outputs)
        await outputs.aclose()
        assert engine.aborted == ["r"] and engine.running == set()

    run_virtual(scene())


def test_it_refuses_as_the_real_one_does() -> None:
    async def scene() -> None:
        engine = FakeEngine(context_tokens=8)
        with pytest.raises(ContextLengthExceeded):
            await engine.generate(request("r", [1] * 8, 1), Heard())
        await engine.close()
        with pytest.raises(ShuttingDown):
            await engine.generate(request("r", [1], 1), Heard())

    run_virtual(scene())


def test_logprobs_are_made_up_where_they_are_asked_for() -> None:
    async def scene() -> None:
        outputs = outputs_of(FakeEngine(), request("r", [1], 1, logprobs=3))
        output = await anext(outputs)
        assert output.logprobs[0].text == output.text
        assert len(output.logprobs[0].top) == 3
        await outputs.aclose()

    run_virtual(scene())

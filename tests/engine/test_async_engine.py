"""The engine behind an event loop, with a scripted engine below it and with a small real one."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from infra.errors import (
    ContextLengthExceeded,
    Invalid,
    PlatformError,
    ReplicaFailed,
    ShuttingDown,
)
from tests.engine.tiny import Heard, LetterTokenizer, greedy_alone, make_engine, outputs_of, request
from worker.engine.async_engine import AsyncEngine
from worker.engine.choice import Choice
from worker.engine.event import Ending, Event, Failure, NewToken
from worker.engine.guided import Matcher
from worker.engine.request import GenerationRequest, Guide, Output, refuse_too_long
from worker.engine.stats import EngineStats
from worker.models.causal_model import CausalModel
from worker.tokenizer.detokenizer import Detokenizer


@dataclass
class Counting:
    """Answers every request with its token numbers; `pace` lets one step pass a permit."""

    context_tokens: int = 64
    running: dict[str, GenerationRequest] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    steps: int = 0
    error: Exception | None = None
    bad: frozenset[str] = frozenset()
    pace: threading.Semaphore | None = None
    tokens_a_step: int = 1
    finished: threading.Event = field(default_factory=threading.Event)  # something has
    is_closed: bool = False

    def check(self, request: GenerationRequest) -> None:
        refuse_too_long(request, context_tokens=64, kv_tokens=64)

    def compile(self, guide: Guide) -> Matcher:
        raise Invalid("that is no guide")

    def submit(self, request: GenerationRequest, matcher: Matcher | None = None) -> None:
        self.running[request.request_id] = request
        self.made[request.request_id] = 0

    def abort(self, request_id: str) -> None:
        if self.running.pop(request_id, None):
            self.aborted.append(request_id)

    def has_work(self) -> bool:
        return bool(self.running)

    def step(self) -> Sequence[Event]:
        if self.pace is not None:
            self.pace.acquire()
        if self.error is not None:
            raise self.error
        self.steps += 1
        running = list(self.running.values())
        return [event for asked in running for event in self._go_on(asked)]

    def close(self) -> None:
        self.is_closed = True

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self.running), steps=self.steps)

    def _go_on(self, asked: GenerationRequest) -> Iterator[Event]:
        name = asked.request_id
        if name in self.bad:
            del self.running[name]
            yield Failure(name, PlatformError("cannot"))
            return
        for _ in range(self.tokens_a_step):
            self.made[name] += 1
            is_last = self.made[name] == asked.sampling.max_tokens
            yield NewToken(name, Choice(self.made[name]), Ending.LENGTH if is_last else None)
            if is_last:
                del self.running[name]
                self.finished.set()
                return


@dataclass(frozen=True)
class Numbers:
    """Token 7 is `7 `."""

    def stream(self) -> Detokenizer:
        return Detokenizer(self.token_bytes, drops_first_space=False)

    def token_bytes(self, token_id: int) -> bytes:
        return f"{token_id} ".encode()


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
async def engine(counting: Counting) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(counting, Numbers())
    engine.start()
    yield engine
    if counting.pace is not None:
        counting.pace.release(1000)
    await engine.close()
    assert counting.is_closed


async def _outputs(engine: AsyncEngine, asked: GenerationRequest) -> list[Output]:
    return [output async for output in outputs_of(engine, asked)]


async def text_of(engine: AsyncEngine, asked: GenerationRequest) -> str:
    return "".join([output.text async for output in outputs_of(engine, asked)])


async def test_outputs_arrive_in_order_until_the_last(engine: AsyncEngine) -> None:
    assert await text_of(engine, request("a", [1], 4)) == "1 2 3 4 "


async def test_requests_run_together(engine: AsyncEngine, counting: Counting) -> None:
    texts = await asyncio.gather(
        *(text_of(engine, request(f"r{index}", [1], 3)) for index in range(20))
    )
    assert texts == ["1 2 3 "] * 20
    assert counting.steps < 60
    assert engine.stats.running == 0 and engine.stats.steps == counting.steps


async def test_an_idle_engine_takes_no_steps(engine: AsyncEngine, counting: Counting) -> None:
    await text_of(engine, request("a", [1], 2))
    await asyncio.sleep(0.01)
    assert counting.steps == 2


async def test_an_abort_ends_it_within_a_step(engine: AsyncEngine, counting: Counting) -> None:
    counting.pace = threading.Semaphore(1)
    outputs = outputs_of(engine, request("a", [1], 50))
    assert (await anext(outputs)).text == "1 "
    await outputs.aclose()
    counting.pace.release(1)  # the step that was under way
    other = asyncio.ensure_future(text_of(engine, request("b", [1], 1)))
    counting.pace.release(5)
    assert await other == "1 "
    assert counting.aborted == ["a"] and counting.made["a"] <= 2


async def test_cancelling_the_consumer_aborts(engine: AsyncEngine, counting: Counting) -> None:
    counting.pace = threading.Semaphore(0)
    consumer = asyncio.ensure_future(text_of(engine, request("a", [1], 50)))
    await asyncio.sleep(0)
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    counting.pace.release(100)
    assert await text_of(engine, request("b", [1], 1)) == "1 "
    assert counting.aborted == ["a"]


async def test_a_stop_string_ends_the_stream_and_aborts_within_a_step(
    engine: AsyncEngine, counting: Counting
) -> None:
    counting.pace = threading.Semaphore(0)
    asked = request("a", [1], 50, stop=("4",))
    stopped = asyncio.ensure_future(_outputs(engine, asked))
    counting.pace.release(4)
    outputs = await stopped
    counting.pace.release(1)  # the step that was under way
    other = asyncio.ensure_future(text_of(engine, request("b", [1], 1)))
    counting.pace.release(5)
    assert await other == "1 "

    assert "".join(output.text for output in outputs) == "1 2 3 "
    assert [output.finish_reason for output in outputs] == [None, None, None, "stop"]
    assert counting.aborted == ["a"] and counting.made["a"] <= 5


async def test_tokens_after_a_stop_string_are_nobodys(
    engine: AsyncEngine, counting: Counting
) -> None:
    """Also those of its own step, of which guesses make several."""
    counting.tokens_a_step = 3
    outputs = await _outputs(engine, request("a", [1], 50, stop=("4 5",), logprobs=0))
    assert "".join(output.text for output in outputs) == "1 2 3 "
    assert [output.token_ids for output in outputs] == [(1,), (2,), (3,), (4,), (5,)]
    assert [each.token_id for output in outputs for each in output.logprobs] == [1, 2, 3]


async def test_a_stop_string_in_the_last_token_is_no_abort(
    engine: AsyncEngine, counting: Counting
) -> None:
    outputs = await _outputs(engine, request("a", [1], 3, stop=("3",)))
    assert [output.finish_reason for output in outputs] == [None, None, "stop"]
    await engine.close()
    assert counting.aborted == []


async def test_a_loop_that_is_busy_holds_no_step_up(
    engine: AsyncEngine, counting: Counting
) -> None:
    outputs = outputs_of(engine, request("a", [1], 40))
    assert (await anext(outputs)).text == "1 "
    assert counting.finished.wait(10)  # blocks the loop: nothing is delivered
    assert counting.steps == 40
    assert [output.text async for output in outputs] == [f"{number} " for number in range(2, 41)]


async def test_gauges_know_of_an_abort_that_left_nothing_to_do(
    engine: AsyncEngine, counting: Counting
) -> None:
    counting.pace = threading.Semaphore(1)
    outputs = outputs_of(engine, request("a", [1], 50))
    await anext(outputs)
    assert engine.stats.running == 1
    await outputs.aclose()
    counting.pace.release(100)
    await engine.close()
    assert engine.stats.running == 0


async def test_a_fault_of_one_listener_ends_its_request_alone(
    engine: AsyncEngine, counting: Counting
) -> None:
    class Faulty(Heard):
        def hear(self, output: Output) -> None:
            raise ZeroDivisionError

    faulty = Faulty()
    counting.pace = threading.Semaphore(1)
    await engine.generate(request("a", [1], 50), faulty)
    assert isinstance(await faulty.news.get(), ZeroDivisionError)
    counting.pace.release(10)
    assert await text_of(engine, request("b", [1], 3)) == "1 2 3 "
    assert counting.aborted == ["a"] and faulty.news.empty()


async def test_nothing_is_heard_of_what_was_aborted(engine: AsyncEngine) -> None:
    heard = Heard()
    await engine.generate(request("a", [1], 3), heard)
    engine.abort("a")
    engine.abort("a")
    await text_of(engine, request("b", [1], 3))
    assert heard.news.empty()


async def test_what_can_never_run_is_refused_at_once(engine: AsyncEngine) -> None:
    with pytest.raises(ContextLengthExceeded):
        await engine.generate(request("a", [1] * 60, 5), Heard())


async def test_a_requests_own_error_ends_it_alone(engine: AsyncEngine, counting: Counting) -> None:
    counting.bad = frozenset(["bad"])
    other = asyncio.ensure_future(text_of(engine, request("good", [1], 5)))
    with pytest.raises(PlatformError, match="cannot"):
        await text_of(engine, request("bad", [1], 5))
    assert await other == "1 2 3 4 5 "
    assert counting.aborted == []


async def test_an_id_that_is_in_flight_is_refused(engine: AsyncEngine, counting: Counting) -> None:
    counting.pace = threading.Semaphore(1)
    first = outputs_of(engine, request("a", [1], 3))
    await anext(first)
    with pytest.raises(ValueError, match="in flight"):
        await anext(outputs_of(engine, request("a", [1], 3)))
    counting.pace.release(10)
    assert [output.text async for output in first] == ["2 ", "3 "]


async def test_a_dead_engine_fails_all_and_says_so_once(counting: Counting) -> None:
    failures: list[BaseException] = []
    engine = AsyncEngine(counting, Numbers(), failures.append)
    counting.pace = threading.Semaphore(1)
    engine.start()
    outputs = outputs_of(engine, request("a", [1], 3))
    await anext(outputs)
    counting.error = RuntimeError("out of memory")
    counting.pace.release(5)
    with pytest.raises(ReplicaFailed, match="out of memory"):
        await anext(outputs)
    with pytest.raises(ReplicaFailed):
        await engine.generate(request("b", [1], 3), Heard())
    assert failures == [counting.error]
    await engine.close()


async def test_closing_ends_what_runs_and_refuses_what_comes(counting: Counting) -> None:
    engine = AsyncEngine(counting, Numbers())
    counting.pace = threading.Semaphore(1)
    engine.start()
    outputs = outputs_of(engine, request("a", [1], 50))
    await anext(outputs)
    closing = asyncio.ensure_future(engine.close())
    await asyncio.sleep(0)
    counting.pace.release(5)
    await closing
    with pytest.raises(ShuttingDown):
        await anext(outputs)
    with pytest.raises(ShuttingDown):
        await engine.generate(request("b", [1], 1), Heard())
    await engine.close()


async def test_a_guide_that_does_not_compile_ends_its_request_before_the_engine_hears_of_it() -> (
    None
):
    engine = Counting()
    running = AsyncEngine(engine, Numbers())
    running.start()
    with pytest.raises(Invalid, match="no guide"):
        async for _ in outputs_of(running, request("r", [1], 3, guide=Guide("regex", "["))):
            pass
    await running.close()
    assert not engine.made


@pytest.mark.parametrize("speculation", ["none", "ngram"])
async def test_what_stop_strings_and_cancels_leave_behind_is_nothing(
    tiny: CausalModel, speculation: str
) -> None:
    prompt = [97, 98, 99] * 6
    plain = "".join(map(chr, greedy_alone(tiny, prompt, 40)))
    stop = plain[9:11]
    engine = make_engine(tiny, speculation=speculation)
    running = AsyncEngine(engine, LetterTokenizer())
    running.start()

    async def leave(name: str) -> None:
        outputs = outputs_of(running, request(name, prompt, 500))
        await anext(outputs)
        await outputs.aclose()

    stopped = [text_of(running, request(f"s{i}", prompt, 500, stop=(stop,))) for i in range(3)]
    whole = text_of(running, request("whole", prompt, 40))
    *texts, other = await asyncio.gather(*stopped, whole)
    await asyncio.gather(*(leave(f"left{index}") for index in range(3)))
    async with asyncio.timeout(60):
        while running.stats.running:  # noqa: ASYNC110 - nobody would tell us
            await asyncio.sleep(0.001)
    await running.close()

    assert texts == [plain[: plain.index(stop)]] * 3 and other == plain
    engine.check_integrity()
    stats = engine.stats()
    assert stats.free_blocks == stats.total_blocks
    assert stats.generated_tokens < 1000, "of the 3,040 that were asked for"

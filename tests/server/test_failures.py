import asyncio

import orjson

from infra.errors import ReplicaFailed
from infra.virtual_time import run_virtual
from tests.server.support import (
    Client,
    chat_body,
    engine_saying,
    make_server,
    post,
)
from worker.engine.fake import FakeEngine, Script
from worker.engine.request import GenerationRequest

CHAT = "/v1/chat/completions"


def client(**members: object) -> Client:
    return Client(CHAT, orjson.dumps(chat_body(**members)))


def test_an_error_before_the_first_token_keeps_its_status() -> None:
    engine = FakeEngine(Script(pieces=(), error=ReplicaFailed("the engine died")))

    for stream in (False, True):
        reply = run_virtual(post(make_server(engine), CHAT, chat_body(stream=stream)))

        assert reply.status == 503
        assert reply.json["type"] == "/problems/replica-failed"


def test_an_error_after_the_head_is_an_event_and_an_orderly_end() -> None:
    engine = FakeEngine(Script(("a", "b"), delay_s=1, error=ReplicaFailed("the engine died")))

    reply = run_virtual(post(make_server(engine), CHAT, chat_body(stream=True)))

    assert reply.status == 200
    assert reply.is_complete
    last = reply.body.decode().removesuffix("\n\n").split("\n\n")[-1].split("\n")
    assert last[0] == "event: error"
    assert orjson.loads(last[1].removeprefix("data: ")) == {
        "error": {
            "message": "the engine died",
            "type": "server_error",
            "param": None,
            "code": "replica_failed",
        }
    }
    assert b"[DONE]" not in reply.body
    assert b'"content":"b"' in reply.body  # what came before the error is not lost


def test_one_choice_s_error_ends_the_others() -> None:
    engine = FakeEngine(_second_fails)

    async def story() -> None:
        reply = await post(make_server(engine), CHAT, chat_body(n=3, seed=0))
        assert reply.status == 503
        assert len(engine.aborted) == 2
        assert engine.running == set()

    run_virtual(story())


def _second_fails(request: GenerationRequest) -> Script:
    if request.sampling.seed == 1:
        return Script(pieces=("a",), error=ReplicaFailed("the engine died"))
    return Script(pieces=("a",) * 100, delay_s=1)


def test_a_defect_of_ours_shows_no_insides() -> None:
    def broken(request: GenerationRequest) -> Script:
        raise ZeroDivisionError("secret detail")

    reply = run_virtual(post(make_server(FakeEngine(broken)), CHAT, chat_body()))

    assert reply.status == 500
    assert reply.json["type"] == "/problems/internal"
    assert b"secret detail" not in reply.body


def test_a_client_that_leaves_during_prefill_is_forgotten_at_once() -> None:
    assert _leaving_at(0.5, stream=False) == (1, 0.5)
    assert _leaving_at(0.5, stream=True) == (1, 0.5)


def test_a_client_that_leaves_during_decode_is_forgotten_at_once() -> None:
    assert _leaving_at(1.75, stream=False) == (1, 1.75)
    assert _leaving_at(1.75, stream=True) == (1, 1.75)


def test_all_choices_of_a_client_that_leaves_are_aborted() -> None:
    assert _leaving_at(1.75, stream=True, n=5) == (5, 1.75)


def _leaving_at(seconds: float, **members: object) -> tuple[int, float]:
    """How many engine requests were aborted, and when the request had ended."""
    engine = engine_saying(*["a"] * 50, first_delay_s=1, delay_s=0.5)
    leaving = client(**members)

    async def story() -> tuple[int, float]:
        running = asyncio.create_task(leaving.run(make_server(engine)))
        await asyncio.sleep(seconds)
        leaving.has_left.set()
        await running
        assert engine.running == set()
        assert not leaving.reply.is_complete
        return len(engine.aborted), asyncio.get_running_loop().time()

    return run_virtual(story())


def test_a_client_that_leaves_while_it_does_not_read_is_noticed() -> None:
    engine = engine_saying(*["a"] * 50, delay_s=0.5)
    leaving = client(stream=True)

    async def story() -> None:
        leaving.is_reading.clear()
        running = asyncio.create_task(leaving.run(make_server(engine)))
        await asyncio.sleep(1)
        leaving.has_left.set()
        await running
        assert engine.running == set()
        assert len(engine.aborted) == 1

    run_virtual(story())


def test_a_slow_client_gets_everything_in_few_writes() -> None:
    pieces = [str(number % 10) for number in range(200)]
    slow = client(stream=True)

    async def story() -> None:
        running = asyncio.create_task(slow.run(make_server(engine_saying(*pieces, delay_s=0.01))))
        await asyncio.sleep(0.5)
        slow.is_reading.clear()
        await asyncio.sleep(10)
        slow.is_reading.set()
        await running

    run_virtual(story())
    deltas = [event["choices"][0]["delta"].get("content", "") for event in slow.reply.events[:-1]]
    assert "".join(deltas) == "".join(pieces)
    assert len(slow.reply.writes) < 60


def test_a_client_too_slow_for_its_stream_ends_its_own_request_only() -> None:
    engine = FakeEngine(Script(pieces=("x" * 100_000,) * 100, delay_s=0.01))
    slow, other = client(stream=True), client(stream=True)

    async def story() -> None:
        server = make_server(engine)
        slow.is_reading.clear()
        running = asyncio.create_task(slow.run(server))
        finished = asyncio.create_task(other.run(server))
        await finished
        assert len(engine.aborted) == 1
        slow.is_reading.set()
        await running

    run_virtual(story())
    assert other.reply.is_complete
    assert slow.reply.is_complete
    assert b'"code":"client_too_slow"' in slow.reply.body
    assert len(slow.reply.body) < 6 << 20


def test_an_answer_that_grows_without_bound_is_given_up() -> None:
    engine = FakeEngine(Script(pieces=("x" * (1 << 20),) * 100))

    reply = run_virtual(post(make_server(engine), CHAT, chat_body()))

    assert reply.status == 400
    assert "the answer grew over" in reply.json["detail"]
    assert len(engine.aborted) == 1

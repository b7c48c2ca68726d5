import asyncio

import orjson

from infra.virtual_time import run_virtual
from tests.server.support import Client, chat_body, engine_saying, make_server, post

CHAT = "/v1/chat/completions"


def client(**members: object) -> Client:
    return Client(CHAT, orjson.dumps(chat_body(**members)))


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_drain_finishes_what_runs_and_takes_nothing_new() -> None:
    async def story() -> None:
        server = make_server(engine_saying("a", "b", first_delay_s=1, delay_s=1))
        running = asyncio.create_task(client(stream=True).run(server))
        await asyncio.sleep(0.5)
        draining = asyncio.create_task(server.drain(30))
        await asyncio.sleep(0.5)

        refused = await post(server, CHAT, chat_body())
        health = await Client("/healthz", b"", method="GET").run(server)
        reply = await running
        await draining
        await server.serve()

        assert refused.status == 503
        assert refused.json["type"] == "/problems/shutting-down"
        assert health.status == 503
        assert health.json == {"status": "draining"}
        assert reply.events[-1] == "[DONE]"
        assert now() == 2

    run_virtual(story())


def test_an_idle_server_drains_at_once() -> None:
    async def story() -> None:
        server = make_server(engine_saying("a"))
        await server.drain(30)
        await server.serve()
        assert now() == 0

    run_virtual(story())


def test_at_the_deadline_what_still_runs_is_told_so() -> None:
    async def story() -> None:
        engine = engine_saying(*["a"] * 100, first_delay_s=1, delay_s=1)
        server = make_server(engine)
        streaming = asyncio.create_task(client(stream=True).run(server))
        waiting = asyncio.create_task(client().run(server))
        await asyncio.sleep(0.5)

        await server.drain(5)

        streamed, whole = await streaming, await waiting
        assert now() == 5.5
        assert b'"code":"shutting_down"' in streamed.body
        assert streamed.is_complete
        assert whole.status == 503
        assert whole.json["error"]["code"] == "shutting_down"
        assert len(engine.aborted) == 2

    run_virtual(story())


def test_a_client_that_does_not_read_cannot_hold_up_a_drain() -> None:
    async def story() -> None:
        stuck = client(stream=True)
        stuck.is_reading.clear()
        server = make_server(engine_saying("a", "b"))
        running = asyncio.create_task(stuck.run(server))

        await server.drain(5)

        assert now() <= 6
        stuck.has_left.set()  # as the cut connection makes it
        stuck.is_reading.set()
        await running

    run_virtual(story())

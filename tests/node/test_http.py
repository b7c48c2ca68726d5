import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from worker.node.http import Answer, HttpConnection

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(serve: Serve) -> AsyncIterator[HttpConnection]:
    """A connection to a server that treats each of its connections so, then waits for its end."""
    tasks: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        with suppress(OSError, EOFError):
            await serve(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = HttpConnection(f"http://127.0.0.1:{port}", headers={"X-Key": "k"})
    try:
        yield connection
    finally:
        connection.close()
        server.close()
        await asyncio.gather(*tasks)
        await server.wait_closed()


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head, await reader.readexactly(length)


def response(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def test_requests_leave_before_earlier_answers_came_and_answers_find_their_requests() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies = [(await read_request(reader))[1] for _ in range(3)]
        for body in bodies:  # only now: all three are on the way before the first answer
            writer.write(response(b"re: " + body))
        await reader.read()

    async with served(serve) as connection:
        answers = await asyncio.gather(
            *(connection.request("POST", "/", body, timeout_s=5) for body in (b"1", b"2", b"3"))
        )

    assert answers == [Answer(200, b"re: 1"), Answer(200, b"re: 2"), Answer(200, b"re: 3")]


async def test_the_request_is_complete() -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await read_request(reader))[0])
        writer.write(response(b"", "204 No Content"))
        await reader.read()

    async with served(serve) as connection:
        answer = await connection.request("GET", "/a?b=c", timeout_s=5)

    assert answer == Answer(204, b"")
    assert heads[0].startswith(b"GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nX-Key: k\r\n" in heads[0]


async def test_a_chunked_answer_is_put_together() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        )
        await reader.read()

    async with served(serve) as connection:
        assert await connection.request("GET", "/", timeout_s=5) == Answer(200, b"abcde")


async def test_a_connection_closed_while_idle_is_opened_again_and_the_request_repeated() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await read_request(reader)
        writer.write(response(str(connections).encode()))
        if connections == 1:
            await reader.readexactly(1)  # the second request has begun to arrive: too late

    async with served(serve) as connection:
        first = await connection.request("GET", "/", timeout_s=5)
        second = await connection.request("GET", "/", timeout_s=5)

    assert (first.body, second.body) == (b"1", b"2")


async def test_a_fresh_connection_that_closes_without_an_answer_is_an_error() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        return

    async with served(serve) as connection:
        with pytest.raises(OSError):
            await connection.request("GET", "/", timeout_s=5)


async def test_nonsense_is_an_error() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        await reader.read()

    async with served(serve) as connection:
        with pytest.raises(OSError):
            await connection.request("GET", "/", timeout_s=5)


async def test_silence_is_a_timeout_and_its_late_answer_is_nobody_elses() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            await read_request(reader)
            writer.write(response(b"in time"))
        await reader.read()

    async with served(serve) as connection:
        with pytest.raises(TimeoutError):
            await connection.request("GET", "/", timeout_s=0.02)
        assert (await connection.request("GET", "/", timeout_s=5)).body == b"in time"


async def test_nobody_listens() -> None:
    connection = HttpConnection("http://127.0.0.1:1", headers={})

    with pytest.raises(OSError):
        await connection.request("GET", "/", timeout_s=5)

"""Bytes between a port and a unix socket: all of them, in both directions, as fast as each end."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from worker.node.container.relay import Relay

Run = Callable[[Awaitable[None]], None]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def relayed(folder: Path, serve: Serve) -> AsyncIterator[tuple[Relay, int]]:
    path, serving = str(folder / "s"), set[asyncio.Task[None] | None]()

    async def until_done(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        await serve(reader, writer)
        writer.close()

    server = await asyncio.start_unix_server(until_done, path)
    relay = Relay(path)
    try:
        yield relay, await relay.open("127.0.0.1")
    finally:
        relay.close()
        server.close()
        await asyncio.gather(*filter(None, serving))
        await asyncio.sleep(0)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """The agent runs on uvloop, which reads where asyncio would not yet."""

    def run(scenario: Awaitable[None]) -> None:
        async def play() -> None:
            await scenario

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(play())

    return run


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def test_what_is_sent_comes_back_and_half_a_connection_may_end(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        sent = bytes(range(256)) * 20_000

        async with relayed(tmp_path, echo) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            writer.write_eof()
            assert await reader.read() == sent
            writer.close()

    run(scenario())


def test_who_speaks_first_and_leaves_at_once_is_heard(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")

        async with relayed(tmp_path, greet) as (_, port):
            for _ in range(50):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                assert await reader.read() == b"hello"
                writer.close()

    run(scenario())


def test_who_asks_at_once_and_says_no_more_is_heard(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with relayed(tmp_path, echo) as (_, port):
            for asked in (b"x", b"y" * 1_000_000):
                with socket.create_connection(("127.0.0.1", port)) as client:
                    client.setblocking(False)
                    client.sendall(asked[:100_000])  # there before the relay has accepted
                    client.shutdown(socket.SHUT_WR)
                    said = b""
                    while part := await asyncio.get_running_loop().sock_recv(client, 1 << 20):
                        said += part
                assert said == asked[:100_000]

    run(scenario())


def test_a_client_that_does_not_read_holds_its_server_up_and_no_memory(
    run: Run, tmp_path: Path
) -> None:
    async def scenario() -> None:
        written = 0
        is_held_up = asyncio.Event()

        async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal written
            try:
                while written < 256 << 20:
                    writer.write(b"x" * 65536)
                    written += 65536
                    draining = asyncio.ensure_future(writer.drain())
                    done, _ = await asyncio.wait({draining}, timeout=0.2)
                    if not done:
                        is_held_up.set()
                    await draining
            except ConnectionError:
                return

        async with relayed(tmp_path, pour) as (_, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            await is_held_up.wait()
            assert written < 64 << 20
            writer.transport.abort()

    run(scenario())


def test_a_server_that_is_gone_ends_the_connection(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        relay = Relay(str(tmp_path / "nobody"))
        port = await relay.open("127.0.0.1")

        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionError):
            if await reader.read() == b"":
                raise ConnectionResetError
        writer.close()
        relay.close()
        await asyncio.sleep(0)

    run(scenario())


def test_who_is_connected_stays_when_nobody_new_is_taken(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with relayed(tmp_path, echo) as (relay, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"

            relay.stop_accepting()

            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"b")
            assert await reader.readexactly(1) == b"b"
            writer.close()

    run(scenario())

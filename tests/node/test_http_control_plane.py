import asyncio
from collections.abc import Callable

import pytest

from infra.contracts.base import NodeId
from infra.contracts.node import ClockReading, NodeReport
from worker.node.control_plane import UnknownNode, Unreachable
from worker.node.http_control_plane import HttpControlPlane

NODE = NodeId("n1")
DESIRED = b'{"version": 7, "standby": 1, "replicas": []}'


async def answered(status: str, body: bytes, ask: Callable[[HttpControlPlane], object]) -> object:
    """What the adapter makes of that answer to `ask`."""
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await reader.read()
        writer.close()
        closed.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    control_plane = HttpControlPlane(f"http://127.0.0.1:{port}", token="t" * 16)
    try:
        return await ask(control_plane)  # type: ignore[misc]
    finally:
        await control_plane.close()
        await closed.wait()
        server.close()
        await server.wait_closed()


async def poll(control_plane: HttpControlPlane) -> object:
    return await control_plane.desired(NODE, after=3, wait_s=0)


async def tell(control_plane: HttpControlPlane) -> object:
    return await control_plane.report(NodeReport(node_id=NODE, standby_ready=0))


async def test_a_good_answer_is_the_desired_state() -> None:
    state = await answered("200 OK", DESIRED, poll)

    assert (state.version, state.standby) == (7, 1)  # type: ignore[attr-defined]


async def test_a_report_is_answered_with_the_control_planes_clock() -> None:
    reading = ClockReading(wall=1, monotonic=2, boot_id="b")

    assert await answered("200 OK", reading.model_dump_json().encode(), tell) == reading


async def test_the_address_is_the_one_from_which_it_was_reached() -> None:
    async def ask(control_plane: HttpControlPlane) -> object:
        assert control_plane.address is None
        with pytest.raises(UnknownNode):
            await tell(control_plane)
        return control_plane.address

    assert await answered("404 Not Found", b"{}", ask) == "127.0.0.1"


@pytest.mark.parametrize("ask", [poll, tell])
async def test_404_means_register_again(ask) -> None:
    with pytest.raises(UnknownNode):
        await answered("404 Not Found", b"{}", ask)


@pytest.mark.parametrize("ask", [poll, tell])
@pytest.mark.parametrize("status", ["401 Unauthorized", "500 Oops", "503 Later", "302 Found"])
async def test_other_errors_mean_try_again_later_and_say_which(ask, status: str) -> None:
    with pytest.raises(Unreachable, match=status[:3]):
        await answered(status, b"why", ask)


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"version": "x"}', DESIRED[:-1]])
async def test_an_answer_that_is_no_desired_state_changes_nothing(body: bytes) -> None:
    with pytest.raises(Unreachable, match="DesiredState"):
        await answered("200 OK", body, poll)


async def test_nobody_there() -> None:
    with pytest.raises(Unreachable):
        await poll(HttpControlPlane("http://127.0.0.1:1", token="t" * 16))

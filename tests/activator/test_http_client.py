"""The replica client on real sockets: framing, reuse, and every way in which an answer can end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from control_plane.activator.connection import MAX_HEAD_BYTES
from control_plane.activator.http_client import HttpReplicaClient
from control_plane.activator.replica_client import (
    Headers,
    ReplicaGone,
    ReplicaRequest,
    ReplicaUnreachable,
    Sending,
)
from control_plane.fleet.replica import Endpoint
from infra.contracts.base import NodeId, ReplicaId, RequestId, RevisionName
from infra.contracts.tenancy import TenantName

Handler = Callable[["Peer"], Awaitable[None]]

REQUEST = ReplicaRequest(
    RequestId("req_1"), "/v1/completions", b'{"a":1}', TenantName("acme"), timeout_s=60.0
)
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Peer:
    """The replica's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> tuple[bytes, bytes]:
        """Head and body of the next request; raises IncompleteReadError at the end."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        return head, await self.reader.readexactly(length)

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


class Replica:
    """A server whose connections do what `handler` says."""

    def __init__(self) -> None:
        self.handler: Handler = answer_each
        self.connections = 0
        self.peers: list[Peer] = []
        self.closed = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def start(self) -> Endpoint:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        return Endpoint(
            ReplicaId("r1"), NodeId("n1"), RevisionName("m@1"), "127.0.0.1", port, "token", 8
        )

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for peer in self.peers:
            with suppress(AttributeError):  # which asyncio raises for a connection already lost
                peer.writer.transport.abort()
        await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        peer = Peer(reader, writer)
        self.peers.append(peer)
        try:
            await self.handler(peer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
        finally:
            writer.close()


async def answer_each(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.say(OK)


def says(data: bytes) -> Handler:
    """Answers one request with these bytes and closes."""

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(data)

    return handler


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    replica = Replica()
    yield replica
    await replica.stop()


@pytest.fixture
async def endpoint(replica: Replica) -> Endpoint:
    return await replica.start()


@pytest.fixture
async def client() -> AsyncIterator[HttpReplicaClient]:
    client = HttpReplicaClient(connect_timeout_s=1, last_words_s=0.1)
    yield client
    await client.close()


class Response:
    """A Reader whose owner waits for what it is told."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = ()
        self._parts: list[bytes] = []
        self._is_whole = False
        self._failure: ReplicaGone | None = None
        self._news = asyncio.Event()
        self.sending: Sending

    async def until_head(self) -> None:
        while not self.status:
            await self._wait()

    async def read(self) -> bytes:
        """The next part; b"" at the end. Raises ReplicaGone."""
        while not self._parts:
            if self._is_whole:
                return b""
            await self._wait()
        return self._parts.pop(0)

    def close(self) -> None:
        self.sending.abort()

    def head(self, status: int, headers: Headers) -> None:
        self.status, self.headers = status, headers
        self._news.set()

    def body(self, data: bytes) -> None:
        assert self.status and not self._is_whole
        self._parts.append(data)
        self._news.set()

    def end(self) -> None:
        self._is_whole = True
        self._news.set()

    def gone(self, why: ReplicaGone) -> None:
        assert not self._is_whole
        self._failure = why
        self._news.set()

    async def _wait(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._news.clear()
        await self._news.wait()


async def send(
    client: HttpReplicaClient, endpoint: Endpoint, request: ReplicaRequest = REQUEST
) -> Response:
    """Returns with the head."""
    response = Response()
    response.sending = client.send(endpoint, request, response)
    await response.until_head()
    return response


async def everything(client: HttpReplicaClient, endpoint: Endpoint) -> bytes:
    response = await send(client, endpoint)
    parts = []
    while data := await response.read():
        parts.append(data)
    return b"".join(parts)


async def test_a_request_carries_its_token_its_id_and_its_body(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def handler(peer: Peer) -> None:
        seen.append(await peer.request())
        await peer.say(OK)

    replica.handler = handler

    assert await everything(client, endpoint) == b"ok"

    [(head, body)] = seen
    assert head.split(b"\r\n") == [
        b"POST /v1/completions HTTP/1.1",
        b"host: 127.0.0.1:%d" % endpoint.port,
        b"authorization: Bearer token",
        b"content-type: application/json",
        b"firstlight-request-id: req_1",
        b"firstlight-tenant: acme",
        b"firstlight-timeout: 60.000",
        b"content-length: 7",
        b"",
        b"",
    ]
    assert body == b'{"a":1}'


async def test_one_connection_serves_one_request_after_another(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    for _ in range(5):
        assert await everything(client, endpoint) == b"ok"

    assert replica.connections == 1


async def test_requests_at_once_get_a_connection_each(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    answers = await asyncio.gather(*(everything(client, endpoint) for _ in range(8)))

    assert answers == [b"ok"] * 8
    assert replica.connections == 8


async def test_chunks_are_passed_on_as_they_come(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    goes_on = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(3):
            await peer.say(b"7\r\ndata: %d\r\n" % number)
            goes_on.clear()
            await goes_on.wait()
        await peer.say(b"0\r\n\r\n")
        await answer_each(peer)

    replica.handler = handler
    response = await send(client, endpoint)

    for number in range(3):
        assert await response.read() == b"data: %d" % number
        goes_on.set()
    assert await response.read() == b""
    response.close()
    assert await everything(client, endpoint) == b"ok"
    assert replica.connections == 1


async def test_an_answer_split_at_every_byte_is_the_same_answer(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nA: b\r\n\r\n2\r\nok\r\n0\r\n\r\n"

    async def handler(peer: Peer) -> None:
        await peer.request()
        for place in range(len(answer)):
            await peer.say(answer[place : place + 1])
            await asyncio.sleep(0)

    replica.handler = handler
    response = await send(client, endpoint)

    assert (response.status, response.headers) == (
        200,
        ((b"transfer-encoding", b"chunked"), (b"a", b"b")),
    )
    assert [await response.read(), await response.read()] == [b"ok", b""]
    response.close()


async def test_an_informational_answer_is_skipped(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    replica.handler = says(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)

    assert await everything(client, endpoint) == b"ok"


async def test_a_kept_connection_that_was_closed_meanwhile_is_not_used(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    replica.handler = says(OK)

    for _ in range(3):
        assert await everything(client, endpoint) == b"ok"
        await asyncio.sleep(0.01)

    assert replica.connections == 3


async def test_a_kept_connection_that_closes_as_it_is_used_is_replaced_unseen(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    async def closes_on_the_second(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.request()

    replica.handler = closes_on_the_second
    assert await everything(client, endpoint) == b"ok"

    assert await everything(client, endpoint) == b"ok"

    assert replica.connections == 2


async def test_a_new_connection_that_closes_without_an_answer_is_gone(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    replica.handler = says(b"")

    with pytest.raises(ReplicaGone, match="without an answer"):
        await everything(client, endpoint)

    assert replica.connections == 1


async def test_nobody_at_the_port_is_unreachable(endpoint: Endpoint, replica: Replica) -> None:
    await replica.stop()

    with pytest.raises(ReplicaUnreachable, match="no connection"):
        await send(HttpReplicaClient(), endpoint)


async def test_who_was_asked_on_a_kept_connection_and_is_not_there_any_more_has_seen_the_request(
    client: HttpReplicaClient, endpoint: Endpoint, replica: Replica
) -> None:
    asked = asyncio.Event()

    async def answers_once(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.request()
        asked.set()
        await asyncio.Event().wait()

    replica.handler = answers_once
    await everything(client, endpoint)
    second = asyncio.create_task(everything(client, endpoint))
    await asked.wait()
    await replica.stop()

    with pytest.raises(ReplicaGone, match="no connection") as gone:
        await second

    assert not isinstance(gone.value, ReplicaUnreachable)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\nhalf",
        b"HTTP/1.1 200 OK\r\n\r\nhalf",
    ],
    ids=["content-length", "between chunks", "within a chunk", "no length at all"],
)
async def test_a_body_that_breaks_off_is_never_taken_for_a_whole_one(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient, answer: bytes
) -> None:
    replica.handler = says(answer)
    response = await send(client, endpoint)

    assert await response.read() == b"half"
    with pytest.raises(ReplicaGone, match="before its answer was whole"):
        await response.read()
    response.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00\x01\x02\x03" * 100,
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 600 Very Bad\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 999 Unheard Of\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 099 Too Little\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 000 Nothing\r\ncontent-length: 2\r\n\r\nok",
    ],
)
async def test_garbage_is_gone(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient, answer: bytes
) -> None:
    replica.handler = says(answer)

    with pytest.raises(ReplicaGone):
        await everything(client, endpoint)


@pytest.mark.parametrize(
    "beginning",
    [
        b"HTTP/1.1 200 OK\r\na: ",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\ntrailer: ",
    ],
    ids=["head", "trailer"],
)
async def test_a_head_without_end_is_cut_off(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient, beginning: bytes
) -> None:
    sent = 0

    async def handler(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.say(beginning)
        while True:
            await peer.say(b"x" * 65536)
            sent += 65536

    replica.handler = handler

    with pytest.raises(ReplicaGone, match=f"exceeds {MAX_HEAD_BYTES}"):
        await everything(client, endpoint)
    await replica.closed.wait()

    assert sent < 100 << 20


async def test_what_follows_a_whole_answer_spoils_the_connection_and_not_the_answer(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK + OK.replace(b"ok", b"no"))
        await asyncio.sleep(1)

    replica.handler = handler
    assert await everything(client, endpoint) == b"ok"

    replica.handler = answer_each
    assert await everything(client, endpoint) == b"ok"
    assert replica.connections == 2


async def test_a_connection_that_speaks_unasked_is_not_used(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    answered, given_up = asyncio.Event(), asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await answered.wait()
        await peer.say(OK.replace(b"ok", b"no"))
        with suppress(ConnectionError):
            assert await peer.reader.read() == b""
        given_up.set()

    replica.handler = handler
    assert await everything(client, endpoint) == b"ok"
    answered.set()
    await given_up.wait()
    replica.handler = answer_each

    assert await everything(client, endpoint) == b"ok"
    assert replica.connections == 2


async def test_closing_early_tells_the_replica_at_once(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await peer.request()

    replica.handler = handler
    response = await send(client, endpoint)
    await response.read()

    response.close()
    response.close()

    await asyncio.wait_for(replica.closed.wait(), 60)


async def test_cancelling_before_the_head_tells_the_replica_at_once(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.request()

    replica.handler = handler
    sending = client.send(endpoint, REQUEST, Response())
    await asyncio.sleep(0.02)

    sending.abort()

    await asyncio.wait_for(replica.closed.wait(), 60)


async def test_a_reader_that_does_not_read_holds_the_replica_back(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    sent = 0
    total = 64 << 20

    async def handler(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while sent < total:
            await peer.say(b"x" * 65536)
            sent += 65536

    replica.handler = handler
    response = await send(client, endpoint)
    response.sending.pause()
    await asyncio.sleep(0.1)
    held_back_at = sent

    assert held_back_at < 16 << 20, "what the kernel's buffers take, no more"
    response.sending.resume()
    size = 0
    while data := await response.read():
        size += len(data)
    response.close()
    assert size == total


async def test_a_large_request_goes_out_whole(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    sizes: list[int] = []

    async def handler(peer: Peer) -> None:
        await asyncio.sleep(0.05)
        sizes.append(len((await peer.request())[1]))
        await peer.say(OK)

    replica.handler = handler
    body = b"x" * (8 << 20)
    request = ReplicaRequest(
        REQUEST.request_id, REQUEST.path, body, REQUEST.tenant, REQUEST.timeout_s
    )
    response = await send(client, endpoint, request)
    response.close()

    assert sizes == [len(body)]


async def test_forgetting_closes_what_is_kept_and_lets_last_words_arrive(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no")
        await asyncio.sleep(0.02)
        await peer.say(b"k")
        await peer.request()

    replica.handler = handler
    response = await send(client, endpoint)
    client.forget(endpoint.replica_id)

    assert await response.read() == b"o"
    assert await response.read() == b"k"
    response.close()


async def test_forgetting_breaks_what_never_ends(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
        await peer.request()

    replica.handler = handler
    response = await send(client, endpoint)
    client.forget(endpoint.replica_id)

    with pytest.raises(ReplicaGone, match="the replica is gone"):
        await asyncio.wait_for(response.read(), 60)
    response.close()


async def test_a_replica_that_is_forgotten_is_not_asked_again(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    """A kept connection that breaks is replaced, but not when we broke it."""

    async def answers_once(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.request()
        await peer.request()

    replica.handler = answers_once
    await everything(client, endpoint)
    response = Response()
    response.sending = client.send(endpoint, REQUEST, response)
    client.forget(endpoint.replica_id)

    with pytest.raises(ReplicaGone):
        await asyncio.wait_for(response.until_head(), 60)

    assert replica.connections == 1


async def test_who_is_still_connecting_to_a_replica_that_is_forgotten_hears_of_it(
    replica: Replica, endpoint: Endpoint, client: HttpReplicaClient
) -> None:
    response = Response()
    response.sending = client.send(endpoint, REQUEST, response)
    client.forget(endpoint.replica_id)

    with pytest.raises(ReplicaGone):
        await asyncio.wait_for(response.until_head(), 60)


async def test_a_connection_that_is_over_before_it_is_used_is_gone(
    endpoint: Endpoint, client: HttpReplicaClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    async def speaks_at_once(*arguments: Any) -> tuple[Any, Any]:
        transport, connection = await connect(*arguments)
        connection.data_received(b"220 ready\r\n")
        return transport, connection

    monkeypatch.setattr(loop, "create_connection", speaks_at_once)

    with pytest.raises(ReplicaGone, match="at once"):
        await asyncio.wait_for(everything(client, endpoint), 60)

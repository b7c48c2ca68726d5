"""Webhooks over real sockets, to servers that mean no good."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from control_plane.queue.http_webhooks import MOST_ANSWER_BYTES, HttpWebhooks
from control_plane.queue.webhook_client import WebhookFailed
from infra.addresses import is_public
from tests.support.processes import require

HEADERS = {"webhook-id": "job_1.1"}
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Listens on loopback and remembers what it was sent."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self.heads: list[bytes] = []
        self.port = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Server"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            await self._behaviour(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()


def says(data: bytes) -> Behaviour:
    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0.05)

    return behaviour


def local(**changes: Any) -> HttpWebhooks:
    return HttpWebhooks(allows_private=True, **changes)


async def test_the_body_and_headers_arrive_and_the_status_comes_back() -> None:
    bodies = []

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append(await reader.readexactly(4))
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)

    async with Server(behaviour).listening() as server:
        url = f"http://127.0.0.1:{server.port}/a/b?c=d"
        assert await local().post(url, HEADERS, b"body") == 204
    head = server.heads[0].decode()
    assert head.startswith("POST /a/b?c=d HTTP/1.1\r\n")
    assert f"host: 127.0.0.1:{server.port}\r\n" in head
    assert "webhook-id: job_1.1\r\n" in head and "content-length: 4\r\n" in head
    assert bodies == [b"body"]


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    async with Server(says(OK)).listening() as inside:
        there = b"http://127.0.0.1:%d/" % inside.port
        moved = b"HTTP/1.1 302 Found\r\nlocation: %s\r\ncontent-length: 0\r\n\r\n" % there
        async with Server(says(moved)).listening() as server:
            status = await local().post(f"http://127.0.0.1:{server.port}/", HEADERS, b"")
        assert status == 302
        assert inside.heads == []


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://169.254.169.254/latest/meta-data",
        "https://10.0.0.1/",
        "https://0.0.0.0/",
        "https://localhost/",
        "https://2130706433/",
        "https://0x7f.1/",
        "http://example.com/",
        "file:///etc/passwd",
    ],
)
async def test_addresses_of_this_machine_and_its_networks_are_not_called(url: str) -> None:
    with pytest.raises(WebhookFailed):
        await HttpWebhooks().post(url, HEADERS, b"")


async def test_a_name_is_judged_by_what_it_resolves_to_and_resolved_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Server(says(OK)).listening() as server:
        resolved: list[str] = []

        async def rebinding(host: str, port: int, **_: Any) -> Any:
            resolved.append(host)
            address = "127.0.0.1" if len(resolved) > 1 else "93.184.216.34"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

        dialled: list[str] = []

        async def open_connection(host: str, port: int, **_: Any) -> Any:
            dialled.append(host)
            raise OSError("no route")

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", rebinding)
        monkeypatch.setattr(asyncio, "open_connection", open_connection)
        with pytest.raises(WebhookFailed, match="no route"):
            await HttpWebhooks().post(f"https://rebind.test:{server.port}/", HEADERS, b"")
        with pytest.raises(WebhookFailed, match=r"127\.0\.0\.1, which is not of the internet"):
            await HttpWebhooks().post(f"https://rebind.test:{server.port}/", HEADERS, b"")
    assert resolved == ["rebind.test", "rebind.test"]
    assert dialled == ["93.184.216.34"], "what was checked is what is called"
    assert server.heads == []


async def test_a_name_that_is_public_and_private_is_not_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def both(host: str, port: int, **_: Any) -> Any:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("93.184.216.34", "10.0.0.7")
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
    with pytest.raises(WebhookFailed, match=r"10\.0\.0\.7"):
        await HttpWebhooks().post("https://both.test/", HEADERS, b"")


async def test_a_server_that_drips_or_says_nothing_costs_so_much_time_and_no_more() -> None:
    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" * 100:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.01)

    for behaviour in (drips, says(b"")):
        async with Server(behaviour).listening() as server:
            with pytest.raises(WebhookFailed, match="no answer"):
                await local(call_s=0.04 if behaviour is not drips else 0.2).post(
                    f"http://127.0.0.1:{server.port}/", HEADERS, b""
                )


async def test_an_endless_answer_is_not_read() -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        while sent < 50 << 20:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with Server(endless).listening() as server:
        status = await local().post(f"http://127.0.0.1:{server.port}/", HEADERS, b"")
    assert status == 200
    assert sent < 20 << 20, "the sockets' buffers, and then the connection is closed"


async def test_a_head_without_end_is_refused() -> None:
    head = b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * MOST_ANSWER_BYTES
    async with Server(says(head)).listening() as server:
        with pytest.raises(WebhookFailed, match="exceeds"):
            await local().post(f"http://127.0.0.1:{server.port}/", HEADERS, b"")


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n", b"\x00\x01", b"HTTP/1.1 abc\r\n\r\n"])
async def test_what_is_not_http_is_refused(answer: bytes) -> None:
    async with Server(says(answer)).listening() as server:
        with pytest.raises(WebhookFailed):
            await local().post(f"http://127.0.0.1:{server.port}/", HEADERS, b"")


async def test_a_certificate_for_another_name_is_not_trusted(tmp_path: Path) -> None:
    certificate, key = certificate_for("right.test", tmp_path)
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(certificate, key)
    client_tls = ssl.create_default_context(cafile=str(certificate))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_tls)
    port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()

    async def here(host: str, port: int, **_: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "getaddrinfo", here)
        client = local(tls=client_tls)
        assert await client.post(f"https://right.test:{port}/", HEADERS, b"") == 200
        with pytest.raises(WebhookFailed, match="no trusted connection"):
            await client.post(f"https://wrong.test:{port}/", HEADERS, b"")
        with pytest.raises(WebhookFailed, match="no trusted connection"):
            await local().post(f"https://right.test:{port}/", HEADERS, b"")
    server.close()


def certificate_for(name: str, folder: Path) -> tuple[Path, Path]:
    """A certificate that vouches for itself, and its key."""
    require(shutil.which("openssl"), "openssl")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "1", "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName=DNS:{name}", "-keyout", key, "-out", certificate),
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return certificate, key


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::8.8.8.8", True),
        ("127.0.0.1", False),
        ("127.255.255.254", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b:1::1", False),
        ("2002:7f00:1::", False),
        ("2001:0:808:808::f7f7:f7f7", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
    ],
)
def test_which_addresses_are_of_the_internet(address: str, expected: bool) -> None:
    assert is_public(address) is expected

"""Calls webhooks over the network, whose addresses may be hostile."""

import asyncio
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import SplitResult

import httptools

from control_plane.queue.webhook_client import WebhookFailed
from control_plane.queue.webhook_url import parsed
from infra.addresses import is_public
from infra.errors import Invalid

CALL_S = 10.0
MOST_ANSWER_BYTES = 64 << 10
_READ_BYTES = 16 << 10


class HttpWebhooks:
    """One connection a call, to an address that was checked after it was resolved.

    A name is resolved once and the connection goes to what came of it, so it cannot mean one
    address when it is checked and another when it is called. Names that lead to a private network
    as well as to the internet are refused. Redirects are not followed; the whole call takes
    CALL_S at most, and of the answer only the status counts.
    """

    def __init__(
        self,
        *,
        allows_private: bool = False,
        call_s: float = CALL_S,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allows_private = allows_private
        self._call_s = call_s
        self._tls = tls or ssl.create_default_context()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        try:
            parts = parsed(url, allows_http=self._allows_private)
            async with asyncio.timeout(self._call_s):
                return await self._post(parts, headers, body)
        except TimeoutError:
            raise WebhookFailed(f"no answer within {self._call_s:g} s") from None
        except Invalid as error:
            raise WebhookFailed(error.detail) from None
        except ssl.SSLError as error:
            raise WebhookFailed(f"no trusted connection: {error.reason}") from error
        except OSError as error:
            raise WebhookFailed(f"no connection: {error.strerror or error}") from error

    async def _post(self, parts: SplitResult, headers: Mapping[str, str], body: bytes) -> int:
        host = parts.hostname or ""
        is_secure = parts.scheme == "https"
        port = parts.port or (443 if is_secure else 80)
        address = await self._resolve(host, port)
        reader, writer = await asyncio.open_connection(
            address,
            port,
            ssl=self._tls if is_secure else None,
            server_hostname=host if is_secure else None,
            limit=MOST_ANSWER_BYTES,
        )
        try:
            writer.write(_request(parts, headers, body))
            await writer.drain()
            return await _status(reader)
        finally:
            writer.close()
            with suppress(OSError):
                writer.transport.abort()

    async def _resolve(self, host: str, port: int) -> str:
        """The address to connect to; raises WebhookFailed where one of them may not be called."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError):
            raise WebhookFailed(f"{host} has no address") from None
        addresses = [str(sockaddr[0]) for *_, sockaddr in found]
        private = [it for it in addresses if not is_public(it)]
        if private and not self._allows_private:
            raise WebhookFailed(f"{host} is {private[0]}, which is not of the internet")
        return addresses[0]


class _Answer:
    """Callbacks of the parser: all that is kept is whether the head is whole."""

    def __init__(self) -> None:
        self.has_head = False

    def on_headers_complete(self) -> None:
        self.has_head = True


async def _status(reader: asyncio.StreamReader) -> int:
    """The status of the final answer's head."""
    received = 0
    answer = _Answer()
    parser = httptools.HttpResponseParser(answer)
    while not answer.has_head or parser.get_status_code() < 200:
        data = await reader.read(_READ_BYTES)
        received += len(data)
        if not data:
            raise WebhookFailed("it closed the connection without an answer")
        if received > MOST_ANSWER_BYTES:
            raise WebhookFailed(f"the head of its answer exceeds {MOST_ANSWER_BYTES} bytes")
        try:
            parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not answer.has_head:
                raise WebhookFailed(f"its answer is not HTTP: {error}") from None
            break
        except httptools.HttpParserUpgrade:
            break
    status: int = parser.get_status_code()
    return status


def _request(parts: SplitResult, headers: Mapping[str, str], body: bytes) -> bytes:
    target = parts.path or "/"
    if parts.query:
        target += f"?{parts.query}"
    host = parts.netloc
    lines = [f"POST {target} HTTP/1.1", f"host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"content-length: {len(body)}", "connection: close", "", ""]
    return "\r\n".join(lines).encode("ascii") + body

"""HTTP connections to registries: kept alive, bounded in time, and in where they lead."""

import http.client
import select
import socket
import ssl
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock, Thread
from typing import IO, Final
from urllib.parse import urljoin, urlsplit

from infra.errors import Forbidden, PlatformError, SourceUnavailable

_READ_BYTES: Final = 256 << 10
_MOST_IDLE: Final = 16
_MOST_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MOST_ERROR_BYTES: Final = 64 << 10
_LEAST_BYTES_PER_S: Final = 50_000  # slower than this is an answer that never ends

Body = bytes | IO[bytes] | None
Sink = Callable[[bytes], object]
MayReach = Callable[[str], bool]
"""Whether an address (no name) may be connected to."""


class AddressForbidden(Forbidden):
    """A name leads where whoever chose it has no business."""


def anywhere(address: str) -> bool:
    """For registries that the operator named."""
    return True


@dataclass(frozen=True)
class Answer:
    """A response with its whole body."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


class Opened:
    """A response whose body is still to be read, once."""

    def __init__(self, origin: str, response: http.client.HTTPResponse, *, stall_s: float) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self._origin = origin
        self._response = response
        self._stall_s = stall_s

    def whole(self, most_bytes: int = 0, sink: Sink | None = None) -> Answer:
        """With its body, unless a `sink` takes that of a success; of what is none only so much
        that it says why.
        """
        is_success = self.status < 300
        parts = self.parts(most_bytes if is_success else _MOST_ERROR_BYTES)
        if sink is None or not is_success:
            return Answer(self.status, self.headers, b"".join(parts))
        for part in parts:
            sink(part)
        return Answer(self.status, self.headers, b"")

    def parts(self, most_bytes: int) -> Iterator[bytes]:
        """Raises SourceUnavailable for an answer that stalls, trickles, ends early or is longer."""
        num_bytes = 0
        began_at = time.monotonic()
        expected = self._response.length
        while part := self._read():
            num_bytes += len(part)
            if num_bytes > most_bytes:
                raise SourceUnavailable(f"an answer of more than {most_bytes} bytes")
            allowed_s = self._stall_s + num_bytes / _LEAST_BYTES_PER_S
            if time.monotonic() - began_at > allowed_s:
                raise SourceUnavailable("an answer that trickles")
            yield part
        self._response.close()  # read1 leaves it open at its end, and the connection unusable
        if expected is not None and num_bytes != expected:
            raise SourceUnavailable(f"an answer of {num_bytes} bytes that promised {expected}")

    def _read(self) -> bytes:
        with _said_of(self._origin):
            return self._response.read1(_READ_BYTES)


@contextmanager
def _said_of(origin: str) -> Iterator[None]:
    """What the network does, in the platform's words."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        said = str(error) or type(error).__name__
        raise SourceUnavailable(f"{origin}: {said}") from error


class Connections:
    """Idle connections by origin; any thread may use it."""

    def __init__(
        self,
        *,
        stall_s: float = 10.0,
        connect_s: float = 10.0,
        is_plain: Callable[[str], bool],
        may_reach: MayReach = anywhere,
    ) -> None:
        """`stall_s`: longest silence, once there is a connection; `connect_s`: until there is one;
        `is_plain(host)`: whether to speak HTTP without TLS. What `may_reach` refuses is never
        connected to, wherever it comes from: the image, a redirect, a token service.
        """
        self._stall_s = stall_s
        self._connect_s = connect_s
        self._is_plain = is_plain
        self._may_reach = may_reach
        self._tls = ssl.create_default_context()
        self._lock = Lock()  # guards the lists of idle connections
        self._idle: defaultdict[str, list[http.client.HTTPConnection]] = defaultdict(list)

    def origin(self, host: str) -> str:
        """`http://host` or `https://host`."""
        return f"http://{host}" if self._is_plain(host) else f"https://{host}"

    def make_ready(self, host: str, count: int) -> None:
        """Has so many connections idle in a moment, for requests that will leave together; whoever
        sends those hears what is wrong.
        """
        origin = self.origin(host)
        with self._lock:
            num_idle = len(self._idle[origin])
        for _ in range(count - num_idle):
            Thread(target=self._open_idle, args=(origin,), name="connect", daemon=True).start()

    def _open_idle(self, origin: str) -> None:
        with suppress(PlatformError):
            with _said_of(origin):
                connection = self._connect(origin)
            self._keep_idle(origin, connection)

    def _keep_idle(self, origin: str, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if len(self._idle[origin]) < _MOST_IDLE:
                self._idle[origin].append(connection)
                return
        connection.close()

    def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        most_bytes: int,
        sink: Sink | None = None,
        follow: bool = True,
    ) -> Answer:
        """One exchange; where `follow` says so, redirects of GET and HEAD are followed, without
        credentials elsewhere.

        With a `sink` the body of a success goes there. Raises SourceUnavailable for what the
        network does, for answers that stall, trickle or end early, and for more than `most_bytes`.
        """
        with self.opened(method, url, headers=headers, body=body, follow=follow) as opened:
            return opened.whole(most_bytes, sink)

    @contextmanager
    def opened(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        follow: bool = True,
    ) -> Iterator["Opened"]:
        """As `ask`, the body still to be read; what is not read costs the connection."""
        headers = dict(headers or {})
        for _ in range(_MOST_REDIRECTS):
            with self._exchange(method, url, headers, body) as opened:
                location = opened.headers.get("location")
                may_follow = follow and method in {"GET", "HEAD"}
                if opened.status not in _REDIRECTS or not location or not may_follow:
                    yield opened
                    return
                opened.whole()
            target = urljoin(url, location)
            if urlsplit(target).scheme not in {"http", "https"} or (
                url.startswith("https:") and not target.startswith("https:")
            ):
                raise SourceUnavailable(f"{_origin_of(url)} redirects to an unsafe address")
            if _origin_of(target) != _origin_of(url):
                headers.pop("Authorization", None)
            url = target
        raise SourceUnavailable(f"{_origin_of(url)} redirects without end")

    @contextmanager
    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: Body
    ) -> Iterator["Opened"]:
        split = urlsplit(url)
        path = (split.path or "/") + (f"?{split.query}" if split.query else "")
        origin = _origin_of(url)
        with self._connection(origin) as connection:
            with _said_of(origin):
                connection.request(method, path, body=body, headers=dict(headers))
                response = connection.getresponse()
            yield Opened(origin, response, stall_s=self._stall_s)
            if not response.isclosed():  # its end was not read: the next answer would be that
                connection.close()

    @contextmanager
    def _connection(self, origin: str) -> Iterator[http.client.HTTPConnection]:
        """An idle or new connection; one that met an error is not used again."""
        with self._lock:
            connection = self._idle[origin].pop() if self._idle[origin] else None
        if connection is None or _has_ended(connection):
            with _said_of(origin):
                connection = self._connect(origin)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._keep_idle(origin, connection)

    def _connect(self, origin: str) -> http.client.HTTPConnection:
        split = urlsplit(origin)
        host, is_plain = split.hostname or "", split.scheme == "http"
        connection = (
            http.client.HTTPConnection(host, split.port)
            if is_plain
            else http.client.HTTPSConnection(host, split.port, context=self._tls)
        )
        opened = self._opened(host, connection.port)
        connection.sock = (
            opened if is_plain else self._tls.wrap_socket(opened, server_hostname=host)
        )
        connection.auto_open = 0  # it leads where it was checked to lead, or nowhere
        connection.sock.settimeout(self._stall_s)
        return connection

    def _opened(self, host: str, port: int) -> socket.socket:
        """A name is resolved once: it cannot mean one address here and another when it is called.
        All that it means has to be allowed.
        """
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(address[0]) for *_, address in found]
        if not all(self._may_reach(address) for address in addresses):
            raise AddressForbidden(f"{host} is not on the internet")
        for address in addresses[:-1]:
            with suppress(OSError):
                return self._dialled(address, port)
        return self._dialled(addresses[-1], port)

    def _dialled(self, address: str, port: int) -> socket.socket:
        opened = socket.create_connection((address, port), self._connect_s)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened

    def close(self) -> None:
        """Closes what is idle."""
        with self._lock:
            for idle in self._idle.values():
                for connection in idle:
                    connection.close()
            self._idle.clear()


def _has_ended(connection: http.client.HTTPConnection) -> bool:
    """Whether the other side closed it meanwhile (or said what nobody asked): it is readable."""
    if connection.sock is None:
        return True
    readable = select.poll()  # select() knows no descriptor beyond 1023
    readable.register(connection.sock, select.POLLIN)
    has_ended = bool(readable.poll(0))
    if has_ended:
        connection.close()
    return has_ended


def _origin_of(url: str) -> str:
    split = urlsplit(url)
    return f"{split.scheme}://{split.netloc.rpartition('@')[2]}"

"""Reads parts of files over HTTP, straight into memory (RFC 9110, section 14)."""

import contextlib
import re
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from socket import MSG_WAITALL, SHUT_RDWR, SO_RCVTIMEO, SOL_SOCKET, socket
from struct import Struct
from typing import Final, Protocol
from urllib.parse import SplitResult, urljoin, urlsplit

from infra.contracts.revision import SourceFile
from infra.errors import PlatformError, SourceChanged, SourceInvalid, SourceUnavailable
from infra.sources.patience import Patience

MOST_REDIRECTS: Final = 5
MOST_RETRY_AFTER_S: Final = 30.0
_SLICE_BYTES: Final = 1 << 20  # what is lost at most of bytes that came before a line stalls
_TIME: Final = Struct("@ll")  # seconds and microseconds, as the kernel has them
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a file can be had now: a URL, which may be signed, and what is asked with it.

    With an `etag` only that version is taken.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    etag: str | None = None


class Locate(Protocol):
    def __call__(self, file: SourceFile, *, again: bool) -> Location:
        """`again`: the last location was refused, or has another version than it should have.

        Raises SourceInvalid where the pinned version is gone, SourceUnavailable where the source
        does not let us in.
        """
        ...


class HttpRanges:
    """A RangeReader with one connection at a time; see infra.sources.port."""

    def __init__(self, locate: Locate, patience: Patience) -> None:
        self._locate = locate
        self._patience = patience
        self._locations: dict[str, Location] = {}
        self._origin = ""
        self._connection: HTTPConnection | None = None
        self._answer: HTTPResponse | None = None
        self._lock = threading.Lock()  # guards _socket: interrupt comes from other threads
        self._socket: socket | None = None
        self._is_interrupted = False

    def read_into(self, file: SourceFile, offset: int, memory: memoryview) -> int:
        with self._lock:
            self._is_interrupted = False
        try:
            answer = self._ask(file, offset, len(memory))
            return self._receive(answer, memory)
        except PlatformError:
            self._hang_up()
            raise
        except (OSError, ValueError, HTTPException) as error:  # ValueError: closed beneath us
            self._hang_up()
            reason = str(error) or type(error).__name__
            raise SourceUnavailable(f"{file.path}: {reason[:200]}") from error

    def interrupt(self) -> None:
        with self._lock:
            self._is_interrupted = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    socket.shutdown(self._socket, SHUT_RDWR)  # below TLS, which another thread uses

    def close(self) -> None:
        self._hang_up()

    def _ask(self, file: SourceFile, offset: int, length: int) -> HTTPResponse:
        """An answer whose body is exactly the range."""
        is_again = False
        for _ in range(MOST_REDIRECTS + 2):
            location = self._locations.get(file.path) or self._locate(file, again=is_again)
            self._locations[file.path] = location
            answer = self._get(location, offset, length)
            match answer.status:
                case 206:
                    _check_range(answer, file, offset, length)
                    if location.etag is None or _etag(answer) in {None, location.etag}:
                        return answer
                case 200 if offset == 0 and length == file.size == answer.length:
                    return answer
                case 301 | 302 | 303 | 307 | 308:
                    self._hang_up()
                    self._locations[file.path] = _redirected(location, answer)
                    continue
                case 401 | 403 | 404 | 410 | 412 | 416:
                    pass
                case status:
                    raise _unwilling(file, status, answer)
            self._hang_up()
            del self._locations[file.path]
            if is_again:
                raise _refused(file, answer.status)
            is_again = True
        raise SourceUnavailable(f"{file.path} is redirected in a circle", path=file.path)

    def _get(self, location: Location, offset: int, length: int) -> HTTPResponse:
        headers = {
            "Range": f"bytes={offset}-{offset + length - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": "firstlight",
            **location.headers,
        }
        if location.etag is not None:
            headers["If-Match"] = f'"{location.etag}"'
        parts = urlsplit(location.url)
        path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        while True:
            is_reused = self._connect(parts)
            assert self._connection is not None, "it has just been connected"
            try:
                self._connection.request("GET", path, headers=headers)
                self._answer = self._connection.getresponse()
                return self._answer
            except (OSError, HTTPException):
                self._hang_up()
                if not is_reused or self._is_interrupted:  # an idle connection may have ended
                    raise

    def _connect(self, parts: SplitResult) -> bool:
        """Whether the connection that there is can be used again."""
        origin = f"{parts.scheme}://{parts.netloc}"
        is_open = self._connection is not None and self._connection.sock is not None
        if is_open and self._origin == origin:
            return True
        self._hang_up()
        connect_s = self._patience.connect_s
        match parts.scheme:
            case "https":
                connection: HTTPConnection = HTTPSConnection(
                    parts.netloc, timeout=connect_s, context=_trust()
                )
            case "http":
                connection = HTTPConnection(parts.netloc, timeout=connect_s)
            case _:
                raise SourceUnavailable(f"the source leads to {parts.scheme[:20]!a} addresses")
        connection.connect()
        _bound_silence(connection.sock, self._patience.stall_s)
        self._connection, self._origin = connection, origin
        with self._lock:
            self._socket = connection.sock
            if self._is_interrupted:
                raise SourceUnavailable("interrupted")
        return False

    def _receive(self, answer: HTTPResponse, memory: memoryview) -> int:
        """Bytes that came before the line broke; all of them, where it did not."""
        got = 0
        while got < len(memory):
            try:
                count = self._receive_some(answer, memory[got:], is_first=got == 0)
            except (OSError, ValueError, HTTPException):
                count = 0
            if count == 0:
                self._hang_up()
                break
            got += count
        return got

    def _receive_some(self, answer: HTTPResponse, memory: memoryview, *, is_first: bool) -> int:
        """Next bytes of the body; 0 where there are no more.

        Of plain HTTP all but the last byte comes in one call of the kernel, after what http.client
        has read with the head: threads that are woken for each packet hold one another up. The
        last byte is http.client's again, which has to know that the answer is over.
        """
        connected = None if self._connection is None else self._connection.sock
        if connected is None or isinstance(connected, ssl.SSLSocket):  # None: it closes after this
            return answer.readinto(memory[:_SLICE_BYTES])
        early = len(answer.peek(1)) if is_first else 0
        if early or len(memory) == 1:
            return answer.readinto(memory[: early or 1])
        assert answer.length is not None, "it was compared with the range"
        count = connected.recv_into(memory, len(memory) - 1, MSG_WAITALL)
        answer.length -= count
        return count

    def _hang_up(self) -> None:
        with self._lock:
            self._socket = None
        if self._answer is not None:
            self._answer.close()
            self._answer = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _bound_silence(connected: socket, seconds: float) -> None:
    """The kernel ends what is silent for so long: a timeout of Python's would make it return with
    whatever has come, where more than that is asked for.
    """
    if isinstance(connected, ssl.SSLSocket):
        connected.settimeout(seconds)
        return
    connected.settimeout(None)
    whole, part = divmod(seconds, 1)
    connected.setsockopt(SOL_SOCKET, SO_RCVTIMEO, _TIME.pack(int(whole), int(part * 1e6)))


@cache
def _trust() -> ssl.SSLContext:
    """The machine's authorities and, as for the small files, those that come with certifi."""
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _check_range(answer: HTTPResponse, file: SourceFile, offset: int, length: int) -> None:
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    found = None if match is None else tuple(map(int, match.groups()))
    if found != (offset, offset + length - 1, file.size) or answer.length != length:
        raise SourceUnavailable(
            f"{file.path}: another range was answered than asked for", path=file.path
        )


def _etag(answer: HTTPResponse) -> str | None:
    value = answer.headers.get("ETag")
    return None if value is None else value.strip('"')


def _redirected(location: Location, answer: HTTPResponse) -> Location:
    """Credentials stay with the origin that they are for."""
    target = urljoin(location.url, answer.headers.get("Location", ""))
    before, after = urlsplit(location.url), urlsplit(target)
    if before.scheme == "https" and after.scheme != "https":
        raise SourceUnavailable("the source leads from https to http")
    is_same = (before.scheme, before.netloc) == (after.scheme, after.netloc)
    return Location(target, location.headers if is_same else {}, location.etag)


def _unwilling(file: SourceFile, status: int, answer: HTTPResponse) -> SourceUnavailable:
    what = "the source serves no ranges" if status == 200 else f"HTTP {status}"
    error = SourceUnavailable(f"{file.path}: {what}", path=file.path)
    wait_s = _retry_after_s(answer)
    if wait_s is not None:
        error.facts["retry_after_s"] = wait_s
    return error


def _retry_after_s(answer: HTTPResponse) -> float | None:
    """Seconds that an overloaded source asks for, when it says them as a number."""
    value = answer.headers.get("Retry-After", "")
    return min(MOST_RETRY_AFTER_S, float(value)) if value.isascii() and value.isdigit() else None


def _refused(file: SourceFile, status: int) -> PlatformError:
    match status:
        case 401 | 403:
            return SourceUnavailable(
                f"access to {file.path} is denied (HTTP {status})",
                hint="check the source's credentials",
                path=file.path,
            )
        case 404 | 410:
            return SourceInvalid(f"{file.path} does not exist any more", path=file.path)
        case _:
            return SourceChanged(
                f"{file.path} has changed since the model was deployed",
                hint="deploy the model again",
                path=file.path,
            )

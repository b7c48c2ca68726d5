"""An origin of limited rate: ranges of one blob over HTTP, all readers together as fast as said."""

import http.client
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from infra.errors import SourceUnavailable

_PIECE_BYTES = 64 << 10


class Origin:
    """Serves until closed; `given_bytes` counts what left it."""

    def __init__(self, host: str, data: bytes, bytes_per_s: float) -> None:
        self.given_bytes = 0
        self._lock = threading.Lock()  # guards the two that follow, and the count
        self._free_at = 0.0
        self._bytes_per_s = bytes_per_s
        origin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
                assert asked is not None
                begin, end = int(asked[1]), int(asked[2]) + 1
                self.send_response(206)
                self.send_header("Content-Length", str(end - begin))
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
                self.end_headers()
                for offset in range(begin, end, _PIECE_BYTES):
                    piece = memoryview(data)[offset : min(end, offset + _PIECE_BYTES)]
                    origin.take(len(piece))
                    self.wfile.write(piece)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = _Server((host, 0), Handler)
        self.url = f"http://{host}:{self._server.server_address[1]}/blob"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, num_bytes: int) -> None:
        """Waits for this many bytes' share of the link."""
        with self._lock:
            now = time.monotonic()
            begin = max(self._free_at, now)
            self._free_at = begin + num_bytes / self._bytes_per_s
            self.given_bytes += num_bytes
        time.sleep(begin - now)  # noqa: TID251 - this is the link

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A node that dies takes its connections with it."""


class RangeSource:
    """Ranges from an Origin, a connection a thread."""

    name = "origin"

    def __init__(self, url: str) -> None:
        self._split = urlsplit(url)
        self._local = threading.local()

    def parts(self, offset: int, length: int) -> Iterator[bytes]:
        try:
            if not hasattr(self._local, "connection"):
                self._local.connection = http.client.HTTPConnection(self._split.netloc, timeout=60)
            headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
            self._local.connection.request("GET", self._split.path, headers=headers)
            data: bytes = self._local.connection.getresponse().read()
        except (OSError, http.client.HTTPException) as error:
            del self._local.connection
            raise SourceUnavailable(f"the origin: {error}") from error
        yield data

"""The HTTP server that gives verified chunks to other nodes."""

import hmac
import os
import select
import socket
import sys
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from itertools import takewhile
from socketserver import TCPServer, ThreadingMixIn
from threading import BoundedSemaphore, Thread
from typing import Any, ClassVar, Final

import structlog

from snapshotter.blob.peers.neighbourhood import Neighbourhood
from snapshotter.blob.peers.placement import home_of
from snapshotter.blob.peers.shared_blobs import SharedBlobs
from snapshotter.blob.peers.upload_cap import UploadCap
from snapshotter.blob.peers.wire import MOST_ANSWER_BYTES, ChunksAsked, parse_path
from snapshotter.blob.stored_blob import StoredBlob
from snapshotter.index.chunk_table import Chunk

log = structlog.get_logger()

_PIECE_BYTES: Final = 256 << 10
_MOST_CONNECTIONS: Final = 256
_MOST_UPLOADS: Final = 64
_IDLE_S: Final = 30.0
_STALL_MS: Final = 10_000
_POLL_S: Final = 0.05  # how long `close` may wait


class PeerServer:
    """Serves until closed, on a thread; `address` is what others are to be told.

    Uploads are `sendfile` from the store's own file. They run beside the fetcher, since a node
    that is the home of a chunk brings it for others, once for all.
    """

    def __init__(
        self,
        shared: SharedBlobs,
        *,
        host: str,
        port: int,
        bearer: str,
        fetch_s: float,
        upload_bytes_per_s: float | None,
    ) -> None:
        """`fetch_s`: how long a node that asks waits for what is fetched. Raises OSError where it
        cannot listen.
        """
        self.cap = UploadCap(upload_bytes_per_s)
        self.neighbourhood: Neighbourhood | None = None  # until then nothing is fetched for others
        self._shared = shared
        self._bearer = bearer.encode()
        self._fetch_s = fetch_s
        self._uploads = BoundedSemaphore(_MOST_UPLOADS)
        self._server = _Server((host, port), self)
        self.port: int = self._server.server_address[1]
        self._thread = Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="peer-server", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Ends all connections."""
        self.cap.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def is_authorized(self, header: str | None) -> bool:
        given = (header or "").removeprefix("Bearer ").encode(errors="replace")
        return hmac.compare_digest(given, self._bearer)

    def answer(self, asked: ChunksAsked, identity: str | None, out: socket.socket) -> HTTPStatus:
        """Writes an answer with bytes to `out`, or returns why there is none."""
        stored = self._shared.store.blobs().get(asked.digest)
        if stored is None or asked.last >= len(stored.table):
            return HTTPStatus.NOT_FOUND
        if stored.table.cut.hex() != identity:
            return HTTPStatus.CONFLICT
        chunks = [stored.table[index] for index in range(asked.first, asked.last + 1)]
        if chunks[-1].end - chunks[0].offset > MOST_ANSWER_BYTES:
            return HTTPStatus.NOT_FOUND
        if not self._uploads.acquire(blocking=False):
            return HTTPStatus.SERVICE_UNAVAILABLE
        try:
            with self._shared.store.opened(stored.ref) as pinned:
                return self._give(asked, chunks, pinned, out)
        finally:
            self._uploads.release()

    def _give(
        self, asked: ChunksAsked, chunks: list[Chunk], stored: StoredBlob, out: socket.socket
    ) -> HTTPStatus:
        missing = [chunk.index for chunk in chunks if not stored.may_give(chunk.index)]
        give_up_at = time.monotonic() + self._fetch_s
        if missing and asked.may_fetch and self._is_home(asked.digest, chunks[0].stripe):
            self._shared.bring(asked.digest, missing, within_s=self._fetch_s)
        left_s = max(give_up_at - time.monotonic(), 0)
        is_coming = self._shared.attend(asked.digest, missing, within_s=left_s)
        here = list(takewhile(lambda chunk: stored.may_give(chunk.index), chunks))
        if not here:
            return HTTPStatus.ACCEPTED if is_coming else HTTPStatus.NOT_FOUND
        begin, end = here[0].offset, here[-1].end
        out.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (end - begin))
        writable = select.poll()
        writable.register(out, select.POLLOUT)
        while begin < end:
            length = min(_PIECE_BYTES, end - begin)
            self.cap.take(length)
            end_of_piece = begin + length
            while begin < end_of_piece:
                if not writable.poll(_STALL_MS):
                    raise TimeoutError("a node that does not read what it asked for")
                begin += os.sendfile(out.fileno(), stored.descriptor, begin, end_of_piece - begin)
        return HTTPStatus.OK

    def _is_home(self, digest: str, stripe: int) -> bool:
        """By what this node itself knows: two that take each other for the home would wait for
        each other.
        """
        if self.neighbourhood is None:
            return False
        own_id = self.neighbourhood.node_id
        fetching = [it.node_id for it in self.neighbourhood.peers_of(digest) if it.can_fetch]
        return home_of(digest, stripe, [own_id, *fetching]) == own_id


class _Server(ThreadingMixIn, TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], peers: PeerServer) -> None:
        self.peers = peers
        self._room = BoundedSemaphore(_MOST_CONNECTIONS)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.info("peer.upload_failed", error=repr(sys.exception()))


class _Handler(BaseHTTPRequestHandler):
    """One connection; its base class bounds the length of lines and the number of headers."""

    protocol_version = "HTTP/1.1"
    server_version = "firstlight"
    sys_version = ""
    timeout: ClassVar[float | None] = _IDLE_S
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        peers = self.server.peers
        asked = parse_path(self.path)
        if not peers.is_authorized(self.headers["Authorization"]):
            self._refuse(HTTPStatus.UNAUTHORIZED)
        elif asked is None:
            self._refuse(HTTPStatus.NOT_FOUND)
        else:
            status = peers.answer(asked, self.headers["Firstlight-Table"], self.connection)
            if status is not HTTPStatus.OK:
                self._refuse(status)

    def _refuse(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Errors are logged where they are handled."""

"""A registry on a real socket that misbehaves as a test says."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from infra.registry.authorization import Authorization, Logins, no_login
from infra.registry.client import Registry
from infra.registry.connections import Connections
from tests.snapshotter.makers import digest_of

Fault = Callable[["Handler"], bool]  # True: it answered


class RegistryServer(ThreadingHTTPServer):
    """What it holds, what was asked, and faults that the next matching requests meet."""

    daemon_threads = False  # each is waited for, so that no socket outlives its test

    def __init__(self, *, lists_referrers: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lists_referrers = lists_referrers
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        self.seen_authorization: list[str | None] = []
        self.faults: list[tuple[str, Fault]] = []
        self.lock = threading.Lock()
        self.open_sockets: set[socket.socket] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def fail(self, pattern: str, *faults: Fault) -> None:
        """The next requests `METHOD path` that match meet these, one each."""
        self.faults += [(pattern, fault) for fault in faults]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""

    def add_blob(self, content: bytes) -> str:
        self.blobs[digest_of(content)] = content
        return digest_of(content)

    def add_manifest(self, name: str, manifest: dict[str, Any]) -> str:
        raw = json.dumps(manifest).encode()
        self.manifests[name] = self.manifests[digest_of(raw)] = (manifest["mediaType"], raw)
        return digest_of(raw)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together
    server: RegistryServer

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.open_sockets.add(self.connection)

    def finish(self) -> None:
        with self.server.lock:
            self.server.open_sockets.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing is printed."""

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self) -> None:
        server = self.server
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        with server.lock:
            server.requests.append((self.command, self.path))
            server.seen_authorization.append(self.headers.get("Authorization"))
            fault = self._fault()
        if fault is None or not fault(self):
            self._behave(body)

    do_GET = do_HEAD = do_PUT = do_POST = _handle  # noqa: N815 - http.server's names

    def _fault(self) -> Fault | None:
        for place, (pattern, fault) in enumerate(self.server.faults):
            if re.search(pattern, f"{self.command} {self.path}"):
                del self.server.faults[place]
                return fault
        return None

    def _behave(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        kind, name = path.split("/")[-2:]
        if self.command == "POST":
            self.answer(202, headers={"Location": f"{path}upload"})
        elif self.command == "PUT" and kind == "uploads":
            digest = query.removeprefix("digest=").replace("%3A", ":")
            if digest_of(body) != digest:
                self.answer(400)
                return
            self.server.blobs[digest] = body
            self.answer(201)
        elif self.command == "PUT":
            self._put_manifest(name, body)
        elif kind == "blobs":
            self._give_blob(name)
        elif kind == "manifests" and name in self.server.manifests:
            media_type, raw = self.server.manifests[name]
            self.answer(200, raw, {"Content-Type": media_type})
        elif kind == "referrers" and self.server.lists_referrers:
            self.answer(200, json.dumps({"manifests": self._referrers(name)}).encode())
        else:
            self.answer(404, b'{"errors": [{"code": "NOT_FOUND"}]}')

    def _put_manifest(self, name: str, body: bytes) -> None:
        media_type = self.headers["Content-Type"]
        for key in (name, digest_of(body)):
            self.server.manifests[key] = (media_type, body)
        subject = json.loads(body).get("subject")
        says = bool(subject) and self.server.lists_referrers
        self.answer(201, headers={"OCI-Subject": subject["digest"]} if says else {})

    def _referrers(self, digest: str) -> list[dict[str, Any]]:
        listed = []
        for name, (media_type, raw) in self.server.manifests.items():
            manifest = json.loads(raw)
            if name.startswith("sha256:") and manifest.get("subject", {}).get("digest") == digest:
                artifact_type = manifest.get("artifactType", "")
                described = {"mediaType": media_type, "digest": name, "size": len(raw)}
                listed.append(described | {"artifactType": artifact_type})
        return listed

    def _give_blob(self, name: str) -> None:
        content = self.server.blobs.get(name)
        if content is None:
            self.answer(404, b'{"errors": [{"code": "BLOB_UNKNOWN"}]}')
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            self.answer(200, content)
            return
        begin, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
        headers = {"Content-Range": f"bytes {begin}-{last}/{len(content)}"}
        self.answer(206, content[begin : last + 1], headers)


@contextmanager
def registry_server(*, lists_referrers: bool = True) -> Iterator[RegistryServer]:
    """A server in a thread, ended at the end."""
    server = RegistryServer(lists_referrers=lists_referrers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        with server.lock:
            for connection in server.open_sockets:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        server.server_close()


class Clients:
    """Makes clients that speak HTTP without TLS and do not wait between tries; closes them."""

    def __init__(self) -> None:
        self._made: list[Registry] = []

    def __call__(
        self,
        logins: Logins = no_login,
        *,
        stall_s: float = 30.0,
        now: Callable[[], float] = time.monotonic,
    ) -> Registry:
        connections = Connections(stall_s=stall_s, is_plain=lambda host: True)
        authorization = Authorization(connections, logins, now=now)
        self._made.append(Registry(connections, authorization, pause=lambda seconds: None))
        return self._made[-1]

    def close(self) -> None:
        for registry in self._made:
            registry.close()


def status(code: int, headers: dict[str, str] | None = None) -> Fault:
    def fault(handler: Handler) -> bool:
        handler.answer(code, b"no", headers)
        return True

    return fault


def truncated(handler: Handler) -> bool:
    """Half of what was promised, then the connection ends."""
    content = handler.server.blobs.get(handler.path.rpartition("/")[2], b"x" * 1000)
    said = handler.headers.get("Range", f"bytes=0-{len(content) - 1}").removeprefix("bytes=")
    begin, _, last = said.partition("-")
    length = int(last) + 1 - int(begin)
    handler.send_response(206 if "Range" in handler.headers else 200)
    handler.send_header("Content-Length", str(length))
    handler.send_header("Content-Range", f"bytes {said}/{len(content)}")
    handler.end_headers()
    handler.wfile.write(content[int(begin) : int(begin) + length // 2])
    handler.close_connection = True
    return True


def dropped(handler: Handler) -> bool:
    """The connection ends without a word."""
    handler.close_connection = True
    return True

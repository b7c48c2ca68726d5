"""An HTTP server of files in ranges, with every fault that a source has been seen with."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = Callable[["Asked"], None]


class RangeServer:
    """Files by name; a fault is given a request and answers it in its own way, once.

    `faults` are used up in order, by whichever request comes next; `always` answers what is left.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.asked: list[Asked] = []
        self.url = ""
        self.released = threading.Event()  # what stalls, stalls until then
        self._lock = threading.Lock()  # guards faults and asked

    def next_fault(self, asked: "Asked") -> Fault | None:
        with self._lock:
            self.asked.append(asked)
            return self.faults.pop(0) if self.faults else self.always

    def ranges(self, name: str) -> list[tuple[int, int]]:
        """(start, stop) of each request for the file so far."""
        with self._lock:
            return [(asked.start, asked.stop) for asked in self.asked if asked.name == name]


@dataclass(eq=False)
class Asked:
    """One request for a range, and the means to answer it."""

    server: RangeServer
    handler: BaseHTTPRequestHandler
    name: str
    start: int
    stop: int
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return self.server.files[self.name][self.start : self.stop]

    def head(self, status: int = 206, length: int | None = None, **headers: str) -> None:
        """Status line and headers of the right answer, but for what is given."""
        size = len(self.server.files.get(self.name, b""))
        known = {
            "Content-Range": f"bytes {self.start}-{self.stop - 1}/{size}",
            "Content-Length": str(self.stop - self.start if length is None else length),
        }
        if self.name in self.server.etags:
            known["ETag"] = f'"{self.server.etags[self.name]}"'
        self.handler.send_response(status)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in (known | given).items():
            self.handler.send_header(name, value)
        self.handler.end_headers()

    def answer(self, body: bytes | None = None, **headers: str) -> None:
        self.head(**headers)
        self.handler.wfile.write(self.body if body is None else body)

    def stall(self) -> None:
        """Says nothing more until the test is over; the connection ends then."""
        self.handler.wfile.flush()
        self.server.released.wait()
        self.handler.close_connection = True


def status(code: int, **headers: str) -> Fault:
    def fault(asked: Asked) -> None:
        asked.head(code, 0, **headers)

    return fault


def truncated(asked: Asked) -> None:
    asked.head()
    asked.handler.wfile.write(asked.body[: len(asked.body) // 2])
    asked.handler.close_connection = True


def stalled(asked: Asked) -> None:
    asked.head()
    asked.handler.wfile.write(asked.body[: len(asked.body) // 2])
    asked.stall()


def silent(asked: Asked) -> None:
    asked.stall()


def reset(asked: Asked) -> None:
    asked.handler.close_connection = True


def wrong_range(asked: Asked) -> None:
    content = asked.server.files[asked.name]
    asked.answer(content[: len(asked.body)], Content_Range=f"bytes 0-9/{len(content)}")


def whole_file(asked: Asked) -> None:
    content = asked.server.files[asked.name]
    asked.head(200, len(content), Content_Range="none")
    asked.handler.wfile.write(content)


def flipped(asked: Asked) -> None:
    asked.answer(bytes(byte ^ 1 for byte in asked.body))


def garbage(asked: Asked) -> None:
    asked.handler.wfile.write(b"\x00\xff this is not HTTP\r\n\r\n")
    asked.handler.close_connection = True


@contextmanager
def range_server() -> Iterator[RangeServer]:
    """Serves on a free port until the block ends."""
    server = RangeServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Is quiet."""

        def do_GET(self) -> None:
            name = self.path.strip("/").partition("?")[0]
            size = len(server.files.get(name, b""))
            first, _, last = (
                self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            )
            stop = min(size, int(last) + 1) if last else size
            asked = Asked(server, self, name, int(first), stop, dict(self.headers))
            fault = server.next_fault(asked)
            wanted = self.headers.get("If-Match", "").strip('"')
            if fault is not None:
                fault(asked)
            elif name not in server.files:
                asked.head(404, 0)
            elif wanted and wanted != server.etags.get(name):
                asked.head(412, 0)
            else:
                asked.answer()

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            """Clients that hang up are what is tested."""

    with Quiet(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_port}"
        try:
            yield server
        finally:
            server.released.set()
            http.shutdown()
            thread.join()

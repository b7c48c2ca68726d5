"""A network link in a process of its own: a rate that all downloads share, and a round trip.

`python -m benchmarks.measure.link HOST:PORT` prints its port; for each line that it reads it prints
how many bytes went down so far.
"""

import argparse
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread
from typing import Final

_PIPE_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 64 << 10
_BURST_S: Final = 0.002


class Wire:
    """Bytes pass one after the other, whichever connection they are of."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._lock = Lock()  # guards the two below
        self._free_at = 0.0
        self.num_bytes = 0

    def pass_bytes(self, num_bytes: int) -> None:
        """Returns when they have passed."""
        with self._lock:
            self.num_bytes += num_bytes
            now = time.perf_counter()
            self._free_at = max(self._free_at, now - _BURST_S) + num_bytes / self._bytes_per_s
            wait_s = self._free_at - now
        if wait_s > 0:
            time.sleep(wait_s)  # noqa: TID251 - this is what the link is for


class RunningLink:
    """The link's address, and what passed it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.address = f"127.0.0.1:{self._line()}"

    def num_bytes(self) -> int:
        """Bytes that went down so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@contextmanager
def running_link(target: str, *, mbit_per_s: float, round_trip_ms: float) -> Iterator[RunningLink]:
    """A link to `target`, ended at the end."""
    command = [sys.executable, "-m", "benchmarks.measure.link", target]
    command += ["--mbit", str(mbit_per_s), "--round-trip-ms", str(round_trip_ms)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield RunningLink(process)
        finally:
            process.kill()


def _down(wire: Wire, server: socket.socket, client: socket.socket) -> None:
    """Without a copy: on the machine of the benchmark every core counts."""
    inlet, outlet = os.pipe()
    fcntl.fcntl(outlet, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    with suppress(OSError):
        while (left := os.splice(server.fileno(), outlet, _PIECE_BYTES)) > 0:
            wire.pass_bytes(left)
            while left:
                left -= os.splice(inlet, client.fileno(), left)
    os.close(inlet)
    os.close(outlet)
    with suppress(OSError):
        client.shutdown(socket.SHUT_WR)


def _up(delay_s: float, client: socket.socket, server: socket.socket) -> None:
    with suppress(OSError):
        while data := client.recv(_PIECE_BYTES):
            time.sleep(delay_s)  # noqa: TID251 - this is what the link is for
            server.sendall(data)
    with suppress(OSError):
        server.shutdown(socket.SHUT_WR)


def _connect(wire: Wire, delay_s: float, client: socket.socket, target: tuple[str, int]) -> None:
    time.sleep(delay_s)  # noqa: TID251 - the handshake takes a round trip, too
    with client, socket.create_connection(target) as server:
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        up = Thread(target=_up, args=(delay_s, client, server), daemon=True)
        up.start()
        _down(wire, server, client)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        up.join()


def _accept(listener: socket.socket, wire: Wire, delay_s: float, target: tuple[str, int]) -> None:
    while True:
        client, _ = listener.accept()
        Thread(target=_connect, args=(wire, delay_s, client, target), daemon=True).start()


def main() -> None:
    """Runs until its input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--mbit", type=float, default=1000)
    parser.add_argument("--round-trip-ms", type=float, default=5)
    arguments = parser.parse_args()
    host, _, port = arguments.target.rpartition(":")
    wire = Wire(arguments.mbit * 125_000)
    delay_s = arguments.round_trip_ms / 1000
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    Thread(target=_accept, args=(listener, wire, delay_s, (host, int(port))), daemon=True).start()
    print(listener.getsockname()[1], flush=True)  # noqa: T201
    for _ in sys.stdin:
        print(wire.num_bytes, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()

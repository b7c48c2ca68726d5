"""How long a 202 takes: requests on kept connections, straight over sockets."""

import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

BODY = b'{"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}'
_ACCEPTED = b"HTTP/1.1 202"
_LENGTH = b"content-length: "
_MOST_BYTES = 64 << 10
_ANSWER_S = 30.0


@dataclass(frozen=True, slots=True)
class Accepts:
    """Seconds of each accepted request, ascending, and of all of them together."""

    each_s: Sequence[float]
    total_s: float

    def quantile(self, share: float) -> float:
        return self.each_s[min(len(self.each_s) - 1, int(share * len(self.each_s)))]


def measure(host: str, port: int, *, concurrency: int, requests: int) -> Accepts:
    """Sends so many requests, each connection the next one when it has its 202.

    No event loop: what the client costs is taken from what is measured, on a machine that is full.
    """
    head = (
        f"POST /v1/models/chat/invoke HTTP/1.1\r\nhost: {host}\r\nprefer: respond-async\r\n"
        f"content-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
    ).encode()
    request, clock = head + BODY, time.perf_counter
    opened = [socket.create_connection((host, port)) for _ in range(min(concurrency, requests))]
    poll, asked_at = select.epoll(), dict[int, float]()
    connections = {each.fileno(): each for each in opened}
    answers = dict.fromkeys(connections, b"")
    seconds: list[float] = []
    started, left = clock(), requests
    for number, connection in connections.items():
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(number, select.EPOLLIN)
        asked_at[number] = clock()
        connection.sendall(request)
        left -= 1
    while len(seconds) < requests:
        ready = poll.poll(_ANSWER_S)
        if not ready:
            raise TimeoutError(f"no answer within {_ANSWER_S:g} s")
        for number, _ in ready:
            connection = connections[number]
            received = connection.recv(_MOST_BYTES)
            if not received:
                raise ConnectionError("closed before it had answered")
            answer = answers[number] + received
            if not _is_whole(answer):
                answers[number] = answer
                continue
            now = clock()
            if not answer.startswith(_ACCEPTED):
                raise RuntimeError(answer.decode(errors="replace"))
            seconds.append(now - asked_at[number])
            answers[number] = b""
            if left:
                left -= 1
                asked_at[number] = clock()
                connection.sendall(request)
    total_s = clock() - started
    poll.close()
    for each in opened:
        each.close()
    return Accepts(sorted(seconds), total_s)


def _is_whole(answer: bytes) -> bool:
    end = answer.find(b"\r\n\r\n")
    at = answer.find(_LENGTH, 0, max(0, end))
    if at < 0:
        return False
    length = answer[at + len(_LENGTH) : answer.index(b"\r", at)]
    return len(answer) >= end + 4 + int(length)

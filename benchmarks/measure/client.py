"""A client of streamed completions that takes next to nothing of the cores it measures on."""

import asyncio
import json
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_EVENT = b"\ndata: "  # no JSON has a line feed, so every match opens an event
_DONE = b"data: [DONE]"
LONGEST_S = 120.0  # nothing here takes a healthy engine so long


class RequestFailed(Exception):
    """The engine said no, or cut the stream."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one engine answers completions."""

    url: str
    model: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """One stream as it arrived; times are `time.perf_counter` seconds."""

    started: float
    arrivals: tuple[float, ...]  # of the events that carry text
    prompt_tokens: int
    tokens: int
    text: str

    @property
    def ttft_s(self) -> float:
        return self.arrivals[0] - self.started

    @property
    def ended(self) -> float:
        return self.arrivals[-1]

    @property
    def tpot_s(self) -> float:
        """Seconds a token after the first."""
        return (self.ended - self.arrivals[0]) / (self.tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        return [after - before for before, after in zip(self.arrivals, self.arrivals[1:])]  # noqa: B905


async def complete(
    endpoint: Endpoint, prompt: Sequence[int] | str, *, max_tokens: int, **extra: Any
) -> Answer:
    """Streams a greedy completion of exactly `max_tokens`. Raises RequestFailed."""
    body = {
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "max_tokens": max_tokens,
        "ignore_eos": True,
        **extra,
    }
    return await _stream(endpoint, "/v1/completions", body)


async def chat(endpoint: Endpoint, question: str, *, max_tokens: int, **extra: Any) -> Answer:
    """Streams a greedy answer. Raises RequestFailed."""
    messages = [{"role": "user", "content": question}]
    body = {"messages": messages, "max_tokens": max_tokens, **extra}
    return await _stream(endpoint, "/v1/chat/completions", body)


async def _stream(endpoint: Endpoint, path: str, asked: dict[str, Any]) -> Answer:
    body = {
        "model": endpoint.model,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **asked,
    }
    where = urlsplit(endpoint.url)
    request = _request(where.netloc, where.path + path, endpoint.headers, body)
    received = _Received()
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    transport, _ = await loop.create_connection(lambda: received, where.hostname, where.port)
    transport.write(request)
    try:
        async with asyncio.timeout(LONGEST_S):
            await received.ended
    except TimeoutError:
        raise RequestFailed(f"no end after {LONGEST_S:.0f} s") from None
    finally:
        transport.abort()
    return read_answer(started, received.pieces)


def _request(host: str, path: str, headers: Mapping[str, str], body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


class _Received(asyncio.Protocol):
    """Keeps what came and when; reading it waits until the measurement is over."""

    def __init__(self) -> None:
        self.pieces: list[tuple[float, bytes]] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.perf_counter(), data))
        if _DONE in data:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def read_answer(started: float, pieces: Sequence[tuple[float, bytes]]) -> Answer:
    """The answer in an HTTP response that arrived in pieces. Raises RequestFailed."""
    raw = b"".join(data for _, data in pieces)
    if not raw.startswith(b"HTTP/1.1 200") and not raw.startswith(b"HTTP/1.0 200"):
        raise RequestFailed(raw[:300].decode(errors="replace") or "the connection closed")
    starts, times, size = [], [], 0
    for at, data in pieces:
        starts.append(size)
        times.append(at)
        size += len(data)

    arrivals: list[float] = []
    texts: list[str] = []
    usage: dict[str, Any] = {}
    position = raw.find(_EVENT)
    while position >= 0:
        begin = position + len(_EVENT)
        end = raw.find(b"\n", begin)
        line = raw[begin : end if end >= 0 else len(raw)].strip()
        position = raw.find(_EVENT, begin)
        if line == b"[DONE]":
            break
        event = json.loads(line)
        if "error" in event:
            raise RequestFailed(str(event["error"])[:300])
        usage = event.get("usage") or usage
        text = "".join(map(_text, event.get("choices", ())))
        if text:
            texts.append(text)
            arrivals.append(times[bisect_right(starts, begin) - 1])
    if not arrivals or "completion_tokens" not in usage:
        raise RequestFailed(f"{len(arrivals)} events with text and usage {usage}")
    return Answer(
        started,
        tuple(arrivals),
        usage["prompt_tokens"],
        usage["completion_tokens"],
        "".join(texts),
    )


def _text(choice: dict[str, Any]) -> str:
    """Of a completion's choice or of a chat's."""
    return choice.get("text") or choice.get("delta", {}).get("content") or ""

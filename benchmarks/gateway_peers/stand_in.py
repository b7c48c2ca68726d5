"""A replica that answers at once, as fast as Python can, so that what stands before it is seen."""

import argparse
import asyncio
from typing import cast

import uvloop

TOKENS = 100
TOKEN_S = 0.010

_ANSWER = (
    b'{"id":"cmpl-1","object":"chat.completion","created":1,"model":"chat","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"Two cores are enough."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":12,"completion_tokens":6,"total_tokens":18}}'
)
_WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(_ANSWER),
    _ANSWER,
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_EVENT = (
    b'data: {"id":"cmpl-1","object":"chat.completion.chunk","created":1,"model":"chat",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
)
_CHUNK = b"%x\r\n%s\r\n" % (len(_EVENT), _EVENT)
_DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_LENGTH = b"content-length: "


class StandIn(asyncio.Protocol):
    """One connection: a body that says `"stream":true` gets TOKENS events, one each TOKEN_S."""

    def __init__(self) -> None:
        self._data = b""
        self._left = 0
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (head_end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:head_end].lower()
            _, is_there, after = head.partition(_LENGTH)
            end = head_end + 4 + (int(after.partition(b"\r\n")[0]) if is_there else 0)
            if len(self._data) < end:
                return
            body, self._data = self._data[head_end + 4 : end], self._data[end:]
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        if b'"stream":true' not in body:
            self._transport.write(_WHOLE)
            return
        self._transport.write(_STREAM_HEAD)
        self._left, self._due = TOKENS, self._loop.time()
        self._token()

    def _token(self) -> None:
        if self._transport.is_closing():
            return
        if self._left == 0:
            self._transport.write(_DONE)
            return
        self._left -= 1
        self._transport.write(_CHUNK)
        self._due += TOKEN_S
        self._loop.call_at(self._due, self._token)


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(StandIn, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def main() -> None:
    """Listens until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    uvloop.run(_serve(parser.parse_args().port))


if __name__ == "__main__":
    main()

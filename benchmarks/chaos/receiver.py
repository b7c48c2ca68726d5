"""Whom webhooks are told to: checks that they are signed, and refuses some of them."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from control_plane.queue.signature import sign

SECRET = "chaos-webhook-secret-0123456789"
_REFUSED = 0.2  # of the calls


@asynccontextmanager
async def receiver(seed: int, told: Callable[[str, str], None]) -> AsyncIterator[str]:
    """Its address; `told` hears the job and the state of each call, "forged" if not signed."""
    dice = random.Random(f"{seed} webhooks")

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = [line.partition(": ") for line in head.split("\r\n")[1:]]
            headers = {name.lower(): value for name, _, value in lines}
            body = await reader.readexactly(int(headers["content-length"]))
            if dice.random() < _REFUSED:
                writer.write(b"HTTP/1.1 500 Not now\r\ncontent-length: 0\r\n\r\n")
                return
            message_id, at = headers["webhook-id"], int(headers["webhook-timestamp"])
            is_ours = headers["webhook-signature"] == sign(SECRET, message_id, at, body)
            job = json.loads(body)["data"]
            told(job["id"], job["state"] if is_ours else "forged")
            writer.write(b"HTTP/1.1 204 Thanks\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the platform was killed as it spoke
        finally:
            writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/told"

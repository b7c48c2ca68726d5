"""The client of a call whose caller does not wait: a Downstream that keeps the answer."""

import asyncio
from collections.abc import Sequence

from control_plane.activator.call import Header
from control_plane.activator.exchange import Exchange
from infra.errors import AnswerTooLarge


class KeptAnswer:
    """Holds a whole answer of at most `most_bytes`; of one that is larger nothing more is taken."""

    def __init__(self, *, most_bytes: int) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._most_bytes = most_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._exchange: Exchange | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def has_started(self) -> bool:
        return self.status != 0

    @property
    def body(self) -> bytes:
        return b"".join(self._parts)

    async def whole(self, exchange: Exchange) -> None:
        """Returns when the exchange is answered; raises why it is not, or AnswerTooLarge.

        Cancelling it ends the exchange.
        """
        self._exchange = exchange
        try:
            await self._ended
        finally:
            exchange.leave()

    def start(self, status: int, headers: Sequence[Header]) -> None:
        self.status = status
        self.headers = dict(headers)

    def send(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self._most_bytes:
            self._parts.append(data)
            return
        self._parts = []
        self.fail(
            AnswerTooLarge(
                f"the answer has more than {self._most_bytes} bytes",
                hint="lower max_tokens",
                limit=self._most_bytes,
            )
        )
        if self._exchange is not None:
            self._exchange.leave()

    def finish(self, data: bytes = b"") -> None:
        self.send(data)
        if not self._ended.done():
            self._ended.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)

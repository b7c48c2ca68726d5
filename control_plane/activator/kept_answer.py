"""The client of a call whose caller does not wait: a Downstream that keeps the answer."""

from collections.abc import Iterable

from control_plane.activator.call import Header
from infra.errors import AnswerTooLarge


class KeptAnswer:
    """Holds a whole answer of at most `most_bytes`; one that is larger raises AnswerTooLarge."""

    def __init__(self, *, most_bytes: int) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._most_bytes = most_bytes
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def has_started(self) -> bool:
        return self.status != 0

    @property
    def body(self) -> bytes:
        return b"".join(self._parts)

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        self.status = status
        self.headers = dict(headers)

    async def send(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._most_bytes:
            raise AnswerTooLarge(
                f"the answer has more than {self._most_bytes} bytes",
                hint="lower max_tokens",
                limit=self._most_bytes,
            )
        self._parts.append(data)

    async def finish(self, data: bytes = b"") -> None:
        await self.send(data)

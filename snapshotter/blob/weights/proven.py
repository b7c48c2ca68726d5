"""What nodes know of files of weights that one of them has proven: the port, and two adapters.

Keys in Redis:
  weights:<blob digest>   the SHA-256 of each piece of the file, one after the other; the key ends
                          some weeks after it was used last

They lie beside the pinned sources, in the same Redis: whoever may write there may deploy.
"""

from threading import Lock
from typing import Final, Protocol, cast

from redis import Redis
from redis.exceptions import RedisError

from infra.errors import StoreUnavailable

_KEPT_S: Final = 30 * 24 * 3600


class ProvenWeights(Protocol):
    """Digests by blob, as packed as infra.sources.piece_digests has them; blocks."""

    def find(self, blob: str) -> bytes:
        """Those of one file; empty where nobody has proven it. Raises StoreUnavailable."""
        ...

    def add(self, blob: str, digests: bytes) -> None:
        """A node has proven the file with the digest that was pinned; replaces what was said
        before, which its bytes contradicted. May be repeated. Raises StoreUnavailable.
        """
        ...


class MemoryProvenWeights:
    """For a node that shares nothing, and tests."""

    def __init__(self) -> None:
        self._lock = Lock()  # guards the digests
        self._digests: dict[str, bytes] = {}

    def find(self, blob: str) -> bytes:
        with self._lock:
            return self._digests.get(blob, b"")

    def add(self, blob: str, digests: bytes) -> None:
        with self._lock:
            self._digests[blob] = digests


class RedisProvenWeights:
    """`url` as for `infra.redis.connect`."""

    def __init__(self, url: str, *, socket_timeout_s: float = 1.0) -> None:
        self._redis: Redis = Redis.from_url(
            url, socket_timeout=socket_timeout_s, socket_connect_timeout=socket_timeout_s
        )

    def find(self, blob: str) -> bytes:
        try:
            with self._redis.pipeline(transaction=False) as asked:
                asked.get(_key(blob))
                asked.expire(_key(blob), _KEPT_S)
                found, _ = asked.execute()
        except (RedisError, OSError) as error:
            raise _silent(error) from error
        return cast(bytes | None, found) or b""

    def add(self, blob: str, digests: bytes) -> None:
        try:
            self._redis.set(_key(blob), digests, ex=_KEPT_S)
        except (RedisError, OSError) as error:
            raise _silent(error) from error


def _key(blob: str) -> str:
    return f"weights:{blob}"


def _silent(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"the digests of weights cannot be had: {error}")

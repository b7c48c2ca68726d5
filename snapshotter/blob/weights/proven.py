"""What nodes know of files of weights that one of them has proven: the port, and two adapters.

Keys in Redis:
  weights:<blob digest>   the SHA-256 of each piece of the file, one after the other, then an
                          HMAC-SHA256 of blob and digests; the key ends some weeks after it was
                          used last

The HMAC's key is made of the token that nodes show each other: whoever may only write to that Redis
can make a node believe nothing.
"""

import hmac
from threading import Lock
from typing import Final, Protocol, cast

import structlog
from redis import Redis
from redis.exceptions import RedisError

from infra.errors import StoreUnavailable

log = structlog.get_logger()

_KEPT_S: Final = 30 * 24 * 3600
_MAC_BYTES: Final = 32
_PURPOSE: Final = b"firstlight: digests of proven weights"


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
    """`url` as for `infra.redis.connect`; `token` is what nodes show each other. What is not
    signed with it was proven by nobody.
    """

    def __init__(self, url: str, *, token: str, socket_timeout_s: float = 1.0) -> None:
        self._key = hmac.digest(token.encode(), _PURPOSE, "sha256")
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
        stored = cast(bytes | None, found) or b""
        digests, mac = stored[:-_MAC_BYTES], stored[-_MAC_BYTES:]
        if not stored or hmac.compare_digest(mac, self._mac(blob, digests)):
            return digests
        log.warning("weights.digests_not_believed", blob=blob, bytes=len(stored))
        return b""

    def add(self, blob: str, digests: bytes) -> None:
        try:
            self._redis.set(_key(blob), digests + self._mac(blob, digests), ex=_KEPT_S)
        except (RedisError, OSError) as error:
            raise _silent(error) from error

    def _mac(self, blob: str, digests: bytes) -> bytes:
        """Of both: digests of one file say nothing of another."""
        return hmac.digest(self._key, b"%s\0%s" % (blob.encode(), digests), "sha256")


def _key(blob: str) -> str:
    return f"weights:{blob}"


def _silent(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"the digests of weights cannot be had: {error}")

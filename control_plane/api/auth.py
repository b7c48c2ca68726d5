"""Who may call: bearer keys, compared in constant time."""

import hashlib
import hmac
from collections.abc import Iterable

from infra.errors import Unauthorized

_SCHEME = b"bearer "


class KeyRing:
    """Keys of which a caller must have one; an empty ring asks for none.

    Only digests are kept and compared, all of them each time: neither a key's length nor its place
    shows in how long an answer takes.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key.encode()) for key in keys)

    def check(self, authorization: bytes | None) -> None:
        """Raises Unauthorized unless the `Authorization` header carries one of the keys."""
        if self._digests and not self._admits(authorization or b""):
            raise Unauthorized(
                "the API key is wrong" if authorization else "an API key is needed",
                hint="send it as `Authorization: Bearer <key>`",
            )

    def _admits(self, authorization: bytes) -> bool:
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            return False
        given = _digest(authorization[len(_SCHEME) :].strip())
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(given, digest)
        return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

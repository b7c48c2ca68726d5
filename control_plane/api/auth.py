"""Who calls: the identity that the edge found, and the bearer keys of node agents."""

import hashlib
import hmac
from collections.abc import Iterable
from typing import Annotated

from fastapi import Depends, Request

from control_plane.tenancy.identity import Identity
from infra.errors import Unauthorized

IDENTITY = "identity"  # in the state of an ASGI scope
_SCHEME = b"bearer "


async def _identity(request: Request) -> Identity:
    identity: Identity = request.scope["state"][IDENTITY]
    return identity


Caller = Annotated[Identity, Depends(_identity)]


class KeyRing:
    """Keys of which a caller must have one.

    Only digests are kept and compared, all of them each time: neither a key's length nor its place
    shows in how long an answer takes.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key.encode()) for key in keys)

    def check(self, authorization: bytes | None) -> None:
        """Raises Unauthorized unless the `Authorization` header carries one of the keys."""
        if not self._admits(authorization or b""):
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

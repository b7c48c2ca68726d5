"""The indexes that images are pinned to, in Redis.

Keys:

* `{firstlight}:image-indexes`  hash, image as a revision pins it → digest of its index; it outlives
                                the revisions, since the same image may be deployed again
"""

import re
from collections.abc import Mapping

from infra.contracts.image import DIGEST_PATTERN
from infra.redis import Connection, store_errors

_PINS = "{firstlight}:image-indexes"


class RedisPinStore:
    """The PinStore that survives a restart."""

    def __init__(self, redis: Connection) -> None:
        self._redis = redis

    async def read(self) -> Mapping[str, str]:
        with store_errors():
            stored = await self._redis.hgetall(_PINS)
        pins = {_text(image): _text(index) for image, index in stored.items()}
        return {image: index for image, index in pins.items() if re.match(DIGEST_PATTERN, index)}

    async def write(self, image: str, index: str) -> None:
        with store_errors():
            await self._redis.hset(_PINS, image, index)


def _text(stored: bytes | str) -> str:
    return stored if isinstance(stored, str) else stored.decode(errors="replace")

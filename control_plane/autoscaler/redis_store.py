"""What was learnt of each model, in Redis.

Keys:

* `{firstlight}:learnt`  hash, model name → Learnt as JSON
"""

from collections.abc import Collection, Mapping
from itertools import chain

import structlog
from pydantic import ValidationError

from control_plane.autoscaler.experience_store import Learnt
from infra.contracts.base import ModelName
from infra.redis import Connection, store_errors

log = structlog.get_logger()

_LEARNT = "{firstlight}:learnt"


class RedisExperienceStore:
    """The ExperienceStore that survives a restart."""

    def __init__(self, redis: Connection) -> None:
        self._redis = redis

    async def read(self) -> Mapping[ModelName, Learnt]:
        with store_errors():
            records = await self._redis.hgetall(_LEARNT)
        found = ((ModelName(_text(name)), _learnt_or_none(it)) for name, it in records.items())
        return {model: learnt for model, learnt in found if learnt is not None}

    async def write(
        self, learnt: Mapping[ModelName, Learnt], *, forgotten: Collection[ModelName]
    ) -> None:
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipeline:
                if learnt:
                    records = [(model, it.model_dump_json()) for model, it in learnt.items()]
                    pipeline.hset(_LEARNT, items=list(chain.from_iterable(records)))
                if forgotten:
                    pipeline.hdel(_LEARNT, *forgotten)
                await pipeline.execute()


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")


def _learnt_or_none(record: bytes | str) -> Learnt | None:
    """What another version wrote, or a hand, is as good as nothing."""
    try:
        return Learnt.model_validate_json(record)
    except ValidationError:
        log.warning("experience.unreadable", record=record[:200])
        return None

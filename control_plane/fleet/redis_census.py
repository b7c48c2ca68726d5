"""What ran where, in Redis.

Keys:

* `{firstlight}:census`  hash, node and revision with a blank between → how many replicas
"""

from collections.abc import Iterator, Mapping

import structlog

from control_plane.fleet.census import Place
from infra.contracts.base import NodeId, RevisionName
from infra.redis import Connection, store_errors

log = structlog.get_logger()

_CENSUS = "{firstlight}:census"


class RedisCensusStore:
    """The CensusStore that survives a restart."""

    def __init__(self, redis: Connection) -> None:
        self._redis = redis

    async def read(self) -> Mapping[Place, int]:
        with store_errors():
            records = await self._redis.hgetall(_CENSUS)
        return dict(_read(records))

    async def write(self, counts: Mapping[Place, int]) -> None:
        items: list[str | int] = []
        for place, count in counts.items():
            items += [_field(place), count] if count > 0 else []
        forgotten = [_field(place) for place, it in counts.items() if it <= 0]
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipeline:
                if items:
                    pipeline.hset(_CENSUS, items=items)
                if forgotten:
                    pipeline.hdel(_CENSUS, *forgotten)
                await pipeline.execute()


def _field(place: Place) -> str:
    return " ".join(place)


def _read(records: Mapping[bytes | str, bytes | str]) -> Iterator[tuple[Place, int]]:
    """What another version wrote, or a hand, is as good as nothing."""
    for field, record in records.items():
        name = field if isinstance(field, str) else field.decode(errors="replace")
        node_id, _, revision = name.rpartition(" ")  # a node's name may have one, too
        if node_id and record.isdigit() and len(record) < 10 and int(record) > 0:
            yield (NodeId(node_id), RevisionName(revision)), int(record)
        else:
            log.warning("census.unreadable", field=name[:200])

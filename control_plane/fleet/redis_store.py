"""Cold-start reports and the leader's lease in Redis.

Keys (all in one hash slot):

* `{firstlight}:coldstarts:<model>`  list of ColdStartReport as JSON, newest first, capped
* `{firstlight}:leader`              hash `owner`, `fence`; expires with the lease
* `{firstlight}:leader:fence`        counter of reigns, never deleted
* `{firstlight}:leader:last`         owner of the last reign, never deleted
"""

from collections.abc import Sequence
from typing import Final

import structlog
from pydantic import ValidationError

from control_plane.fleet.leases import Leadership
from infra.contracts.base import ModelName, RequestId
from infra.contracts.stage import ColdStartReport
from infra.redis import Connection, store_errors

log = structlog.get_logger()

_LEADER = "{firstlight}:leader"
_FENCE = "{firstlight}:leader:fence"
_LAST = "{firstlight}:leader:last"

# KEYS: list · ARGV: cap, at most so many reports
_APPEND = """
redis.call('LPUSH', KEYS[1], unpack(ARGV, 2))
redis.call('LTRIM', KEYS[1], 0, ARGV[1] - 1)
"""

# KEYS: leader, fence, last · ARGV: owner, ttl in ms → fence, or false while another owner has it
_ACQUIRE = """
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and owner ~= ARGV[1] then return false end
if not owner then
  if redis.call('GET', KEYS[3]) ~= ARGV[1] then redis.call('INCR', KEYS[2]) end
  redis.call('SET', KEYS[3], ARGV[1])
  redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'fence', redis.call('GET', KEYS[2]))
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('HGET', KEYS[1], 'fence')
"""

# KEYS: leader · ARGV: owner, fence
_RELEASE = """
local held = redis.call('HMGET', KEYS[1], 'owner', 'fence')
if held[1] == ARGV[1] and held[2] == ARGV[2] then redis.call('DEL', KEYS[1]) end
"""


class RedisTimelineStore:
    """The TimelineStore that survives a restart."""

    def __init__(self, redis: Connection, *, cap: int = 200) -> None:
        self._redis = redis
        self.cap: Final = cap
        self._append = redis.register_script(_APPEND)

    async def append(self, model: ModelName, reports: Sequence[ColdStartReport]) -> None:
        if not reports:
            return
        records = [report.model_dump_json() for report in reports[-self.cap :]]
        with store_errors():
            await self._append(keys=[_reports_key(model)], args=[self.cap, *records])

    async def last(self, model: ModelName, count: int) -> tuple[ColdStartReport, ...]:
        if count <= 0:
            return ()
        with store_errors():
            records = await self._redis.lrange(_reports_key(model), 0, count - 1)
        reports = (_report_or_none(record) for record in records)
        return tuple(report for report in reports if report is not None)

    async def find(self, model: ModelName, request_id: RequestId) -> ColdStartReport | None:
        reports = await self.last(model, self.cap)
        return next((report for report in reports if report.request_id == request_id), None)

    async def forget(self, model: ModelName) -> None:
        with store_errors():
            await self._redis.delete(_reports_key(model))


class RedisLeaderLease:
    """The LeaderLease among control planes that share a Redis."""

    def __init__(self, redis: Connection) -> None:
        self._redis = redis
        self._acquire = redis.register_script(_ACQUIRE)
        self._release = redis.register_script(_RELEASE)

    async def acquire(self, owner: str, *, ttl_s: float) -> Leadership | None:
        with store_errors():
            fence = await self._acquire(
                keys=[_LEADER, _FENCE, _LAST], args=[owner, max(1, round(ttl_s * 1000))]
            )
        return None if fence is None else Leadership(owner, int(fence))

    async def release(self, leadership: Leadership) -> None:
        with store_errors():
            await self._release(keys=[_LEADER], args=[leadership.owner, leadership.fence])


def _reports_key(model: ModelName) -> str:
    return f"{{firstlight}}:coldstarts:{model}"


def _report_or_none(record: bytes | str) -> ColdStartReport | None:
    try:
        return ColdStartReport.model_validate_json(record)
    except ValidationError:
        log.exception("coldstart.unreadable")
        return None

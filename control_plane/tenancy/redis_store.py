"""Keys, tenants' limits and usage in Redis.

Keys (all in one hash slot):

* `{firstlight}:keys`              hash, key id → KeyRecord as JSON
* `{firstlight}:tenants`           hash, tenant → TenantLimits as JSON
* `{firstlight}:usage:<day>`       hash, `<tenant>/<model>/<field of Used>` → count;
                                   expires after 400 days
* `{firstlight}:usage-batch:<id>`  a batch that was counted; expires after an hour
"""

from collections.abc import Mapping
from datetime import date

from control_plane.tenancy.store import KeyRecord
from control_plane.tenancy.usage import Usages, Used
from infra.contracts.base import ModelName
from infra.contracts.tenancy import KeyId, TenantLimits, TenantName, UsageRow
from infra.redis import Connection, store_errors

_KEYS = "{firstlight}:keys"
_TENANTS = "{firstlight}:tenants"

# KEYS: the batch, then one hash a day · ARGV: for each count the index of its day, field, amount
_ADD = """
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', 3600) then return 0 end
for i = 1, #ARGV, 3 do
  redis.call('HINCRBY', KEYS[tonumber(ARGV[i])], ARGV[i + 1], ARGV[i + 2])
end
for i = 2, #KEYS do redis.call('EXPIRE', KEYS[i], 34560000) end
return 1
"""


class RedisTenancyStore:
    """The TenancyStore that survives a restart."""

    def __init__(self, redis: Connection) -> None:
        self._redis = redis

    async def keys(self) -> Mapping[KeyId, KeyRecord]:
        with store_errors():
            found = await self._redis.hgetall(_KEYS)
        records = map(KeyRecord.model_validate_json, found.values())
        return {record.status.key_id: record for record in records}

    async def put_key(self, record: KeyRecord) -> None:
        with store_errors():
            await self._redis.hset(_KEYS, record.status.key_id, record.model_dump_json())

    async def limits(self) -> Mapping[TenantName, TenantLimits]:
        with store_errors():
            found = await self._redis.hgetall(_TENANTS)
        return {
            TenantName(_text(tenant)): TenantLimits.model_validate_json(limits)
            for tenant, limits in found.items()
        }

    async def put_limits(self, tenant: TenantName, limits: TenantLimits) -> None:
        with store_errors():
            await self._redis.hset(_TENANTS, tenant, limits.model_dump_json())


class RedisUsageStore:
    """The UsageStore that survives a restart."""

    def __init__(self, redis: Connection) -> None:
        self._redis = redis
        self._add = redis.register_script(_ADD)

    async def add(self, batch_id: str, usages: Usages) -> None:
        days = sorted({day for day, _, _ in usages})
        counts: list[str | int] = []
        for (day, tenant, model), used in usages.items():
            for what, amount in used.counts():
                counts += [2 + days.index(day), f"{tenant}/{model}/{what}", amount]
        keys = [f"{{firstlight}}:usage-batch:{batch_id}", *map(_day_key, days)]
        with store_errors():
            await self._add(keys=keys, args=counts)

    async def read(self, days: list[date]) -> list[UsageRow]:
        found: dict[tuple[date, TenantName, ModelName], Used] = {}
        for day in days:
            with store_errors():
                fields = await self._redis.hgetall(_day_key(day))
            for field, amount in fields.items():
                tenant, model, what = _text(field).split("/")
                row = (day, TenantName(tenant), ModelName(model))
                found[row] = found.get(row, Used()).plus(Used(**{what: int(amount)}))
        return [used.row(*row) for row, used in sorted(found.items())]


def _text(name: bytes | str) -> str:
    return name if isinstance(name, str) else name.decode()


def _day_key(day: date) -> str:
    return f"{{firstlight}}:usage:{day.isoformat()}"

"""Every store test runs over every adapter."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control_plane.tenancy.redis_store import RedisTenancyStore, RedisUsageStore
from control_plane.tenancy.store import MemoryTenancyStore, TenancyStore
from control_plane.tenancy.usage import MemoryUsageStore, UsageStore
from infra.redis import EmbeddedRedis, connect

Stores = tuple[TenancyStore, UsageStore]


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.real)])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    if request.param == "memory":
        yield MemoryTenancyStore(), MemoryUsageStore()
        return
    async with EmbeddedRedis(tmp_path) as server:
        redis = connect(server.url)
        yield RedisTenancyStore(redis), RedisUsageStore(redis)
        await redis.aclose()

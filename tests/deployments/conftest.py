"""Every store test runs over every adapter."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control_plane.deployments.memory_store import MemoryDeploymentStore
from control_plane.deployments.redis_store import RedisDeploymentStore
from control_plane.deployments.store import DeploymentStore
from infra.redis import EmbeddedRedis, connect


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.real)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DeploymentStore]:
    if request.param == "memory":
        yield MemoryDeploymentStore()
        return
    async with EmbeddedRedis(tmp_path) as server:
        redis = connect(server.url)
        yield RedisDeploymentStore(redis)
        await redis.aclose()

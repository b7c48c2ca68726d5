"""Every store test runs over every adapter; on Redis also while each call seems to fail once."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from control_plane.queue.memory_store import MemoryJobStore
from control_plane.queue.redis_store import RedisJobStore, Run, job_function
from control_plane.queue.store import JobStore, Policy
from infra.redis import EmbeddedRedis
from infra.redis_function import Argument

MakeStore = Callable[[Policy], JobStore]


class ToldFailed:
    """Every call is made, the caller is told that it failed, and calls again."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def __call__(self, arguments: Sequence[Argument], *, reads: bool = False) -> Any:
        await self._run(arguments, reads=reads)
        # here the caller hears StoreUnavailable, and does what the port allows
        return await self._run(arguments, reads=reads)


REDIS = pytest.param("redis", marks=pytest.mark.real)
TOLD_FAILED = pytest.param("told-failed", marks=pytest.mark.real)


@asynccontextmanager
async def stores(kind: str, folder: Path) -> AsyncIterator[MakeStore]:
    if kind == "memory":
        yield MemoryJobStore
        return
    async with EmbeddedRedis(folder) as server:
        made = []

        def make(policy: Policy) -> JobStore:
            run = job_function(server.url, policy)
            made.append(run)
            return RedisJobStore(ToldFailed(run) if kind == "told-failed" else run, policy)

        yield make
        for run in made:
            await run.close()


@pytest.fixture(params=["memory", REDIS, TOLD_FAILED])
async def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MakeStore]:
    async with stores(request.param, tmp_path) as make:
        yield make


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    return make_store(Policy())


@pytest.fixture(params=["memory", REDIS])
async def told_truly(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[JobStore]:
    """A store whose replies arrive, for what only the reply shows."""
    async with stores(request.param, tmp_path) as make:
        yield make(Policy())

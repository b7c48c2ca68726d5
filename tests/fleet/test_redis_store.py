import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control_plane.fleet.census import CensusStore, MemoryCensusStore
from control_plane.fleet.leases import LeaderLease, Leadership, MemoryLeaderLease
from control_plane.fleet.redis_census import RedisCensusStore
from control_plane.fleet.redis_store import RedisLeaderLease, RedisTimelineStore
from control_plane.fleet.timeline import MemoryTimelineStore, TimelineStore
from infra.clock import SystemClock
from infra.contracts.base import ModelName, NodeId, RequestId, RevisionName
from infra.contracts.stage import ColdStartReport, Rung
from infra.redis import Connection, EmbeddedRedis, connect

CHAT = ModelName("chat")
CAP = 5
BOTH = ["memory", pytest.param("redis", marks=pytest.mark.real)]


@pytest.fixture
async def redis(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Connection]:
    async with EmbeddedRedis(tmp_path) as server:
        connection = connect(server.url)
        yield connection
        await connection.aclose()


@pytest.fixture(params=BOTH)
def timelines(request: pytest.FixtureRequest) -> TimelineStore:
    if request.param == "memory":
        return MemoryTimelineStore(cap=CAP)
    return RedisTimelineStore(request.getfixturevalue("redis"), cap=CAP)


@pytest.fixture(params=BOTH)
def lease(request: pytest.FixtureRequest) -> LeaderLease:
    if request.param == "memory":
        return MemoryLeaderLease(SystemClock.start())
    return RedisLeaderLease(request.getfixturevalue("redis"))


@pytest.fixture(params=BOTH)
def census(request: pytest.FixtureRequest) -> CensusStore:
    if request.param == "memory":
        return MemoryCensusStore()
    return RedisCensusStore(request.getfixturevalue("redis"))


def a_report(number: int, model: str = "chat") -> ColdStartReport:
    return ColdStartReport.model_validate(
        {
            "request_id": f"r{number}",
            "model": model,
            "revision": f"{model}@1",
            "replica_id": "x",
            "node_id": "n1",
            "from_rung": Rung.RUNTIME,
            "started_at": 1.0,
            "ttft_s": 0.1 + number,
            "shares": (),
            "unattributed_s": 0.1,
            "clock_uncertainty_s": 0.0,
        }
    )


async def test_the_newest_reports_are_kept_newest_first(timelines: TimelineStore):
    for number in range(8):
        report = a_report(number)
        await timelines.append(report.model, [report])
    await timelines.append(ModelName("other"), [a_report(99, "other")])
    assert await timelines.last(CHAT, 2) == (a_report(7), a_report(6))
    assert len(await timelines.last(CHAT, 100)) == CAP
    assert await timelines.last(CHAT, 0) == await timelines.last(CHAT, -1) == ()


async def test_a_report_is_found_by_its_request_while_kept(timelines: TimelineStore):
    for number in range(8):
        report = a_report(number)
        await timelines.append(report.model, [report])
    assert await timelines.find(CHAT, RequestId("r4")) == a_report(4)
    assert await timelines.find(CHAT, RequestId("r0")) is None
    await timelines.forget(CHAT)
    await timelines.forget(CHAT)
    assert await timelines.last(CHAT, 9) == ()


async def test_a_lease_has_one_owner_and_every_new_owner_a_higher_fence(lease: LeaderLease):
    first = await lease.acquire("a", ttl_s=30)
    assert first == Leadership("a", 1)
    assert await lease.acquire("b", ttl_s=30) is None
    assert await lease.acquire("a", ttl_s=0.02) == first
    await asyncio.sleep(0.05)
    second = await lease.acquire("b", ttl_s=30)
    assert second == Leadership("b", 2)
    assert first is not None and second is not None
    await lease.release(first)
    assert await lease.acquire("a", ttl_s=30) is None
    await lease.release(second)
    assert await lease.acquire("a", ttl_s=30) == Leadership("a", 3)


async def test_who_gets_it_again_has_its_old_fence_unless_another_had_it(lease: LeaderLease):
    first = await lease.acquire("a", ttl_s=0.02)
    await asyncio.sleep(0.04)
    assert await lease.acquire("a", ttl_s=0.02) == first
    await asyncio.sleep(0.04)
    assert await lease.acquire("b", ttl_s=0.02) == Leadership("b", 2)
    await asyncio.sleep(0.04)
    assert await lease.acquire("a", ttl_s=30) == Leadership("a", 3)


async def test_a_census_keeps_what_is_there_and_forgets_what_is_not(census: CensusStore):
    here, there = (NodeId("a node"), RevisionName("chat@1")), (NodeId("n2"), RevisionName("m@12"))
    await census.write({here: 2, there: 1})
    await census.write({here: 3, there: 0})
    await census.write({})
    assert await census.read() == {here: 3}
    if isinstance(census, RedisCensusStore):
        for field, record in {"chat@1": "1", "n chat@1": "many", "n2 chat@1": "-1"}.items():
            await census._redis.hset("{firstlight}:census", field, record)
        assert await census.read() == {here: 3}

"""What was learnt of a model is kept over a restart, and never in the way."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path

import pytest

from control_plane.autoscaler import redis_store
from control_plane.autoscaler.experience import ASSUMED_COLD_START_S, Experience
from control_plane.autoscaler.experience_store import (
    ExperienceStore,
    Learnt,
    MemoryExperienceStore,
)
from control_plane.autoscaler.keep_alive import REMEMBERED, KeepAlive
from control_plane.autoscaler.memory import OLDEST_S, WRITE_EVERY_S, Memory
from control_plane.autoscaler.redis_store import RedisExperienceStore
from infra.contracts.base import ModelName, RevisionName
from infra.errors import StoreUnavailable
from infra.redis import Connection, EmbeddedRedis, connect
from infra.virtual_time import EPOCH, LoopClock, run_virtual
from tests.fleet.world import World, run

CHAT, OTHER = ModelName("chat"), ModelName("other")
LEARNT = Learnt(
    at=EPOCH, idle_times=(5.0, 60.5), saved_s=12.0, climbs=(3.0,), waits=(4.0,), service_s=0.5
)


class Fickle(MemoryExperienceStore):
    """A store that is away now and then, and slow."""

    is_away = False

    async def read(self) -> Mapping[ModelName, Learnt]:
        if self.is_away:
            raise StoreUnavailable("away")
        return await super().read()

    async def write(
        self, learnt: Mapping[ModelName, Learnt], *, forgotten: Collection[ModelName]
    ) -> None:
        await asyncio.sleep(0.5)
        if self.is_away:
            raise StoreUnavailable("away")
        await super().write(learnt, forgotten=forgotten)


def a_memory(store: ExperienceStore) -> Memory:
    return Memory(store, clock=LoopClock())


def an_experience(*idle_times: float) -> Experience:
    return Experience(KeepAlive(idle_times))


async def recalled(store: ExperienceStore, model: ModelName = CHAT) -> Experience:
    memory = a_memory(store)
    await memory.load()
    return memory.recall(model)


def test_what_was_learnt_is_known_after_a_restart():
    store = MemoryExperienceStore()

    async def learn() -> tuple[Experience, float]:
        async with World(experience=store) as world:
            await world.deploy(scaling={"cold_penalty": 20})
            for pause in (30, 4, 30, 50):
                await world.request(seconds=0.5)
                await asyncio.sleep(pause)
            await world.request()
            await asyncio.sleep(2 * WRITE_EVERY_S)
            tracked = world.tracked(RevisionName("chat@1"))
            return tracked.experience, tracked.grace_s()

    async def use() -> tuple[Experience, float]:
        async with World(experience=store) as world:
            await world.deploy(scaling={"cold_penalty": 20})
            tracked = world.tracked(RevisionName("chat@1"))
            return tracked.experience, tracked.grace_s()

    (before, grace_before), (after, grace_after) = run(learn()), run(use())
    assert len(before.keep_alive.idle_times) == 4
    assert after.keep_alive.idle_times == pytest.approx(before.keep_alive.idle_times, abs=1e-3)
    assert after.cold_start_s == before.cold_start_s != ASSUMED_COLD_START_S
    assert after.waits == before.waits
    assert after.service_s == pytest.approx(before.service_s)
    assert grace_after == pytest.approx(grace_before, abs=0.01)


def test_nothing_is_kept_of_a_deleted_model_whatever_its_last_request_teaches():
    store = MemoryExperienceStore()

    async def main() -> None:
        async with World(experience=store, tick_s=5) as world:
            await world.deploy(scaling={"grace": 3600})
            await world.request(seconds=0.5)
            await asyncio.sleep(30)
            assert CHAT in store.kept
            request = world.request(seconds=20)  # ends an idle time, which no tick has seen yet
            await asyncio.sleep(0.01)
            await world.deployments.delete(CHAT, now=world.now())
            await request
            await world.until(lambda: not world.scaled())
            await asyncio.sleep(2 * WRITE_EVERY_S)
            assert store.kept == {}

    run(main())


@pytest.mark.parametrize("at", [EPOCH - OLDEST_S - 1, EPOCH + 7200.0])
def test_what_is_too_old_or_of_the_future_is_not_used(at: float):
    async def main() -> None:
        store = MemoryExperienceStore()
        store.kept[CHAT] = LEARNT.model_copy(update={"at": at})
        assert (await recalled(store)).climbs == ()
        store.kept[CHAT] = LEARNT
        assert (await recalled(store)).climbs == (3.0,)

    run_virtual(main())


def test_while_the_store_is_away_what_was_read_holds_and_what_is_learnt_is_written_later():
    async def main() -> None:
        store = Fickle()
        store.kept = {CHAT: LEARNT}
        memory = a_memory(store)
        await memory.load()
        store.is_away = True
        with pytest.raises(StoreUnavailable):
            await memory.load()
        assert memory.recall(CHAT).climbs == LEARNT.climbs
        loop = asyncio.create_task(memory.run())
        memory.note(CHAT, an_experience(7.0))
        memory.note(OTHER, an_experience(1.0))
        await asyncio.sleep(20)
        memory.forget(OTHER)
        assert store.kept == {CHAT: LEARNT}
        store.is_away = False
        await asyncio.sleep(2 * WRITE_EVERY_S)
        assert {model: it.idle_times for model, it in store.kept.items()} == {CHAT: (7.0,)}
        loop.cancel()

    run_virtual(main())


def test_what_comes_while_the_store_is_asked_is_written_next():
    async def main() -> None:
        store = Fickle()
        memory = a_memory(store)
        experience = an_experience(7.0)
        memory.note(CHAT, experience)
        memory.note(OTHER, an_experience(1.0))
        writing = asyncio.create_task(memory.write())
        await asyncio.sleep(0.25)
        experience.learn_climb(9.0, wait_s=9.0)
        memory.note(CHAT, experience)
        memory.forget(OTHER)
        await writing
        assert store.kept[CHAT].climbs == (9.0,)
        assert OTHER not in store.kept

    run_virtual(main())


def test_what_comes_while_a_write_fails_is_newer_than_what_it_held():
    async def main() -> None:
        store = Fickle()
        memory = a_memory(store)
        store.kept = {OTHER: LEARNT}
        await memory.load()
        memory.note(CHAT, an_experience(7.0))
        memory.forget(OTHER)
        store.is_away = True
        writing = asyncio.create_task(memory.write())
        await asyncio.sleep(0.25)
        memory.forget(CHAT)
        memory.note(OTHER, an_experience(2.0))
        with pytest.raises(StoreUnavailable):
            await writing
        store.is_away = False
        await memory.write()
        assert {model: it.idle_times for model, it in store.kept.items()} == {OTHER: (2.0,)}

    run_virtual(main())


def test_what_was_learnt_goes_with_its_model():
    async def main() -> None:
        store = MemoryExperienceStore()
        async with World(experience=store) as world:
            await world.deploy()
            await world.request()
            await asyncio.sleep(2 * WRITE_EVERY_S)
            assert list(store.kept) == [CHAT]
            await world.deployments.delete(CHAT, now=world.now())
            await world.deploy()
            tracked = world.tracked(RevisionName("chat@2"))
            assert tracked.experience.cold_start_s == ASSUMED_COLD_START_S
            await asyncio.sleep(2 * WRITE_EVERY_S)
            assert list(store.kept) == []

    run(main())


def test_models_that_went_while_nobody_was_there_are_forgotten():
    async def main() -> None:
        store = MemoryExperienceStore()
        store.kept = {CHAT: LEARNT, OTHER: LEARNT}
        memory = a_memory(store)
        await memory.load()
        memory.forget_all_but({CHAT})
        await memory.write()
        assert list(store.kept) == [CHAT]

    run_virtual(main())


# -- the stores ------------------------------------------------------------------------------------


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[Connection]:
    async with EmbeddedRedis(tmp_path) as server:
        connection = connect(server.url)
        yield connection
        await connection.aclose()


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.real)])
def store(request: pytest.FixtureRequest) -> ExperienceStore:
    if request.param == "memory":
        return MemoryExperienceStore()
    return RedisExperienceStore(request.getfixturevalue("redis"))


async def test_a_store_gives_back_what_was_written_last(store: ExperienceStore):
    assert await store.read() == {}
    await store.write({CHAT: LEARNT, OTHER: LEARNT}, forgotten=())
    later = LEARNT.model_copy(update={"saved_s": None, "service_s": None})
    await store.write({CHAT: later}, forgotten=[OTHER])
    await store.write({}, forgotten=[OTHER])
    assert await store.read() == {CHAT: later}


def test_a_record_is_small():
    full = LEARNT.model_copy(
        update={"idle_times": (86_399.123,) * REMEMBERED, "climbs": (1 / 3,) * 5}
    )
    assert len(full.model_dump_json()) < 2048


@pytest.mark.real
@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xff\xfe",
        b"{}",
        b"[1]",
        b'{"at": 1, "idle_times": [-1]}',
        b'{"at": 1, "climbs": [1e400]}',
        b'{"at": NaN}',
        b'{"at": 1, "idle_times": [' + b"1," * 5000 + b"1]}",
        b'{"at": 1, "surprise": 2}',
    ],
)
async def test_a_record_that_cannot_be_read_is_none(redis: Connection, record: bytes):
    store = RedisExperienceStore(redis)
    await store.write({OTHER: LEARNT}, forgotten=())
    await redis.hset(redis_store._LEARNT, CHAT, record)  # type: ignore[misc]
    assert await store.read() == {OTHER: LEARNT}

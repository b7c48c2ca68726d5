"""Two control planes that share what is deployed: one leads, and what happens when it changes."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import orjson

from control_plane.activator.succession import Succession
from control_plane.autoscaler.experience_store import (
    ExperienceStore,
    Learnt,
    MemoryExperienceStore,
)
from control_plane.autoscaler.memory import WRITE_EVERY_S
from control_plane.capacity.simulated.script import Script
from control_plane.deployments.memory_store import MemoryDeploymentStore
from control_plane.deployments.store import Kept
from control_plane.fleet.leases import Leader, Leadership, MemoryLeaderLease
from infra.contracts.base import ModelName, RevisionName
from infra.contracts.revision import ReplicaState
from infra.errors import StoreUnavailable
from infra.virtual_time import LoopClock, run_virtual
from tests.activator.world import streams
from tests.api.world import CHAT, EdgeWorld, Exchange
from tests.fleet.world import SLOW, World

INVOKE = "/v1/chat/completions"
CHAT_1 = RevisionName("chat@1")
LEASE_S = 10.0  # well within the 20 s that `until_leading` waits


class Lease(MemoryLeaderLease):
    """Shared by all; it can be out of reach for one of them."""

    out_of_reach_for: str | None = None
    defects = 0

    def lose(self) -> None:
        """As a store does that falls over to a copy which had not heard of it."""
        self._held = None

    async def acquire(self, owner: str, *, ttl_s: float) -> Leadership | None:
        if owner == self.out_of_reach_for:
            raise StoreUnavailable("it does not answer")
        if self.defects:
            self.defects -= 1
            raise KeyError("a defect")
        return await super().acquire(owner, ttl_s=ttl_s)


class Defective(MemoryDeploymentStore):
    """The store of another one; it fails once, in a way that nobody foresaw."""

    def __init__(self, other: MemoryDeploymentStore) -> None:
        self.__dict__ = other.__dict__
        self._has_failed = False

    async def load(self) -> tuple[Kept, ...]:
        if not self._has_failed:
            self._has_failed = True
            raise KeyError("a defect")
        return await super().load()


class Fickle(MemoryExperienceStore):
    """It is away so many times."""

    refusals = 0

    async def read(self) -> Mapping[ModelName, Learnt]:
        if self.refusals:
            self.refusals -= 1
            raise StoreUnavailable("away")
        return await super().read()


@asynccontextmanager
async def control_plane(
    name: str, lease: Lease, like: World | None, experience: ExperienceStore | None = None
) -> AsyncIterator[EdgeWorld]:
    world = World(experience=experience)
    if like is not None:
        world.deployments._store = like.store
    async with world:
        edge = EdgeWorld(world)
        leader = Leader(lease, name, clock=world.clock, ttl_s=LEASE_S)
        succession = Succession(
            *(leader, world.deployments, edge.lines, world.autoscaler, world.census, world.tasks)
        )
        world.autoscaler._is_leading = succession.is_in_charge
        edge.check_lead = succession.check
        await leader.try_once()
        await succession.begin()
        world.tasks.start(leader.run(), name="leader")
        yield edge
        await edge.settled()
        edge.check()


def call(edge: EdgeWorld, **changes: object) -> Exchange:
    return edge.start("POST", INVOKE, orjson.dumps(CHAT | changes))


async def until_leading(edge: EdgeWorld) -> None:
    for _ in range(200):
        if (await edge.call("GET", "/v1/models")).status == 200:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it does not lead")


def test_who_follows_says_so_at_once_and_wakes_nothing() -> None:
    async def main() -> None:
        lease = Lease(LoopClock())
        async with (
            control_plane("one", lease, None) as one,
            control_plane("two", lease, one.world) as two,
        ):
            await one.world.deploy("chat")
            for exchange in (call(two), two.start("GET", "/v1/models")):
                await exchange.done()
                problem = exchange.problem()
                assert (exchange.status, problem["error"]["code"]) == (503, "not_leader")
                assert exchange.headers["retry-after"] == "2"
            assert (await two.call("GET", "/healthz")).status == 200
            assert two.is_asleep()
            assert (await one.chat()).status == 200

    run_virtual(main())


def test_who_takes_over_knows_what_was_deployed_and_deleted_meanwhile() -> None:
    async def main() -> None:
        lease = Lease(LoopClock())
        async with control_plane("one", lease, None) as one:
            await one.world.deploy("old")
            async with control_plane("two", lease, one.world) as two:
                assert two.world.deployments.get(ModelName("old")) is not None
                await one.world.deploy("chat")
                await one.world.deployments.delete(ModelName("old"), now=one.world.now())
                lease.out_of_reach_for = "one"

                await until_leading(two)

                assert (await two.chat()).status == 200
                assert [it.model for it in two.world.deployments.all()] == ["chat"]

    run_virtual(main())


def test_who_takes_over_goes_on_with_what_the_other_one_learnt() -> None:
    async def main() -> None:
        lease, experience = Lease(LoopClock()), Fickle()
        async with control_plane("one", lease, None, experience) as one:
            await one.world.deploy("chat")
            async with control_plane("two", lease, one.world, experience) as two:
                for pause_s in (30, 40, 1):
                    await one.chat()
                    await asyncio.sleep(pause_s)
                await asyncio.sleep(2 * WRITE_EVERY_S)
                learnt = one.world.autoscaler.keep_alive(CHAT_1)
                known = two.world.autoscaler.keep_alive(CHAT_1)
                assert learnt is not None and known is not None
                assert (learnt.idle_times, known.idle_times) == (2, 0)
                experience.refusals = 2
                lease.out_of_reach_for = "one"

                await until_leading(two)

                known = two.world.autoscaler.keep_alive(CHAT_1)
                assert known is not None
                assert known.idle_times == learnt.idle_times
                assert known.cold_start_s == learnt.cold_start_s
                assert experience.refusals == 0

    run_virtual(main())


def test_a_defect_while_taking_over_ends_neither_that_nor_the_attempts_to_lead() -> None:
    async def main() -> None:
        lease = Lease(LoopClock())
        async with control_plane("one", lease, None) as one:
            await one.world.deploy("chat")
            async with control_plane("two", lease, one.world) as two:
                two.world.deployments._store = Defective(one.world.store)
                lease.defects = 2
                lease.out_of_reach_for = "one"

                await until_leading(two)

                assert lease.defects == 0
                assert (await two.chat()).status == 200

    run_virtual(main())


def test_who_loses_the_lead_sends_away_who_waits_finishes_what_runs_and_goes_to_zero() -> None:
    async def main() -> None:
        lease = Lease(LoopClock())
        async with control_plane("one", lease, None) as one:
            one.script = streams(80, seconds=0.5)
            one.world.capacity.next_scripts.append(Script(drain_s=60))
            limits = {"limits": {"max_concurrency": 1}, "timeouts": {"queue": 600}}
            await one.world.deploy("chat", scaling={"grace": 3600, "max": 1}, **limits)
            runs = call(one, stream=True)
            await one.world.until(lambda: one.replicas.running)
            waits = call(one)
            await one.settled()
            async with control_plane("two", lease, one.world):
                lease.out_of_reach_for = "one"
                await asyncio.sleep(LEASE_S + 4)
                assert waits.status == 0, "in doubt, nobody is sent away"
                lease.out_of_reach_for = None
                await waits.done()
                assert waits.problem()["error"]["code"] == "not_leader"
                await runs.done()
                assert runs.content.count(b"data: ") == 80
                assert ReplicaState.READY not in one.world.alive()
                await one.world.until(lambda: not one.world.alive())

    run_virtual(main())


def test_two_that_lead_for_a_moment_start_one_replica_each_and_one_of_them_gives_up() -> None:
    async def main() -> None:
        lease = Lease(LoopClock())
        async with control_plane("one", lease, None) as one:
            one.world.capacity._script = lambda _: SLOW
            await one.world.deploy("chat", scaling={"grace": 30})
            await asyncio.sleep(0.1)
            lease.lose()
            async with control_plane("two", lease, one.world) as two:
                assert all(it.world.autoscaler._is_leading() for it in (one, two))
                late, right = call(one), call(two)
                await asyncio.sleep(0.1)
                assert [it.world.started() for it in (one, two)] == [1, 1]

                await right.done()
                await late.done()

                assert right.status == 200
                assert late.problem()["error"]["code"] == "not_leader"
                await one.world.until(lambda: not one.world.alive(), seconds=1)
                await asyncio.sleep(20)
                assert [it.world.started() for it in (one, two)] == [1, 1]
                assert two.world.alive() == [ReplicaState.READY]

    run_virtual(main())


def test_while_nobody_knows_who_leads_what_runs_is_used() -> None:
    async def main() -> None:
        lease = Lease(LoopClock())
        async with control_plane("one", lease, None) as one:
            await one.world.deploy("chat", scaling={"grace": 15})
            await one.chat()
            lease.out_of_reach_for = "one"
            await asyncio.sleep(10 * LEASE_S)
            assert (await one.chat()).status == 200
            assert one.world.started() == 1, "and nothing is stopped"
            lease.out_of_reach_for = None
            await one.world.until(lambda: not one.world.alive())
            assert (await one.chat()).status == 200

    run_virtual(main())

"""Everything that may happen to requests and replicas, in random order: nothing is lost or kept."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from control_plane.activator.call import ReplicaRefused
from control_plane.activator.memory_client import Script, Wire
from control_plane.activator.replica_client import ReplicaRequest
from infra.contracts.base import ReplicaId
from infra.contracts.model_spec import Limits
from infra.contracts.revision import ReplicaState, Revision
from infra.errors import PlatformError, ReplicaFailed
from infra.virtual_time import run_virtual
from tests.activator.world import Running, World, says, spec, streams

STEPS = 400
ACTIONS = {
    "arrive": 40,
    "leave": 8,
    "become_ready": 6,
    "begin_to_drain": 3,
    "die": 5,
    "fail_to_start": 1,
    "deploy": 2,
    "delete": 1,
    "wait": 20,
}


class Chaos:
    """One run: a world, a seed, and what must hold after every step."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.revision: Revision
        self.running: list[Running] = []
        self.alive: dict[ReplicaId, Revision] = {}
        self.number = 0
        self.deployments = 0

    async def run(self) -> None:
        await self.deploy()
        actions: dict[str, Callable[[], Awaitable[None]]] = {
            name: getattr(self, name) for name in ACTIONS
        }
        for _ in range(STEPS):
            [name] = self.random.choices(list(ACTIONS), list(ACTIONS.values()))
            await actions[name]()
            self.world.lines.check_integrity()
        await self.finish()

    async def arrive(self) -> None:
        self.number += 1
        call = self.world.call(
            self.number,
            body=b"x" * self.random.randrange(2000),
            stream=self.random.random() < 0.5,
            progress=self.random.random() < 0.3,
        )
        self.running.append(self.world.start(call, self.revision))
        if self.random.random() < 0.5:
            await self.world.settled()

    async def leave(self) -> None:
        if self.running:
            self.random.choice(self.running).leave()

    async def become_ready(self) -> None:
        """Of the current revision, or of one that others still wait for."""
        waiting = [one.revision for one in self.running if not one.ended.done()]
        revision = self.random.choice([self.revision, *waiting])
        self.alive[self.world.ready(revision, self.script())] = revision

    async def begin_to_drain(self) -> None:
        if (replica_id := self.any_alive()) is not None:
            replica = self.world.fleet.replica(replica_id)
            if replica is not None and replica.state is ReplicaState.READY:
                self.world.fleet.drain(
                    replica_id, deadline_s=30, now=self.world.clock.now(), detail="chaos"
                )

    async def die(self) -> None:
        if (replica_id := self.any_alive()) is None:
            return
        del self.alive[replica_id]
        self.world.replicas.kill(replica_id)
        if self.random.random() < 0.7:  # else it is noticed late
            await asyncio.sleep(self.random.random())
        self.world.report(replica_id, ReplicaState.FAILED)

    async def fail_to_start(self) -> None:
        self.world.lines.fail(self.revision.name, ReplicaFailed("chaos"))

    async def deploy(self) -> None:
        self.deployments += 1
        limits = Limits(
            max_concurrency=self.random.randint(1, 4), max_queue=20, max_queue_bytes=20_000
        )
        self.revision = await self.world.deploy(
            spec(limits=limits, cold_start=20, queue=10, execution=5 + self.deployments / 100)
        )

    async def delete(self) -> None:
        await self.world.deployments.delete(self.revision.model, now=self.world.clock.now())
        await self.deploy()

    async def wait(self) -> None:
        await asyncio.sleep(self.random.random() * 2)

    def any_alive(self) -> ReplicaId | None:
        return self.random.choice(list(self.alive)) if self.alive else None

    def script(self) -> Script:
        async def half(request: ReplicaRequest, wire: Wire) -> None:
            wire.head(200)
            await wire.write(b"data: 1\n\n")
            await asyncio.sleep(self.random.random())
            wire.break_off()

        async def refuses(request: ReplicaRequest, wire: Wire) -> None:
            wire.head(self.random.choice((400, 401, 500, 503)))

        async def hangs(request: ReplicaRequest, wire: Wire) -> None:
            await asyncio.sleep(1e6)

        good = [says("x", seconds=0.3), streams(5, seconds=0.2)] * 4
        return self.random.choice([*good, half, refuses, hangs])

    async def finish(self) -> None:
        """Every request ends, by itself, in an answer or in a typed error."""
        for one in self.running:
            try:
                await one.ended
                assert one.client.is_finished
                answered_by = one.client.headers[b"firstlight-revision"]
                assert answered_by == one.revision.name.encode(), "it was admitted to another"
            except (PlatformError, ReplicaRefused):
                assert not one.client.is_finished
            except asyncio.CancelledError:
                pass
        await self.world.settled()
        self.world.check()


@pytest.mark.parametrize("seed", range(25))
def test_whatever_happens_every_request_ends_and_nothing_is_left(seed: int) -> None:
    async def main() -> None:
        world = World()
        try:
            await Chaos(world, seed).run()
        finally:
            await world.close()

    run_virtual(main())

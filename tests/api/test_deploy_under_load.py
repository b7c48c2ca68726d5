"""Deployments, splits, rollbacks, deletions and dying replicas at random, under load."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from control_plane.activator.memory_client import Script, Wire
from control_plane.activator.replica_client import ReplicaRequest
from control_plane.capacity.simulated.machine import MachineShape
from control_plane.capacity.simulated.script import Climbing
from control_plane.capacity.simulated.script import Script as Life
from control_plane.fleet.replica import Replica
from infra.contracts.base import ReplicaId, RevisionName
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Stage
from infra.virtual_time import run_virtual
from tests.api.world import EdgeWorld, Exchange
from tests.fleet.makers import CHAT, GIB, a_spec
from tests.fleet.world import World

SECONDS = 60.0
LONGEST_S = 2.0
CHANGES = {"deploy": 4, "deploy_dark": 2, "split": 5, "rollback": 3, "switch": 2}
HARM = {"crash": 2, "delete": 1}


@dataclass
class Sent:
    """A request, and what could be said of it when it was sent."""

    exchange: Exchange
    in_traffic: frozenset[str]
    lives: int
    is_streaming: bool


class Traffic:
    """One run: clients that never stop calling while somebody changes what answers them."""

    def __init__(self, edge: EdgeWorld, chance: random.Random, actions: dict[str, int]) -> None:
        self.edge = edge
        self.world = edge.world
        self.chance = chance
        self.actions = actions
        self.sent: list[Sent] = []
        self.refused = 0
        self.grace = 0
        self.lives = 1  # grows with every deletion
        self.world.fleet.subscribe(self._script)

    async def run(self) -> None:
        await self.deploy()
        async with asyncio.TaskGroup() as tasks:
            clients = tasks.create_task(self._call())
            await self._change()
            clients.cancel()
        for one in self.sent:
            await one.exchange.done()
            self._check(one)
        await self.edge.settled()
        self.edge.check()

    def _check(self, one: Sent) -> None:
        """Answered in whole by a replica of a revision that it could be admitted to, or, if its
        model was deleted meanwhile, told so."""
        answer = one.exchange
        if one.lives != self.lives and answer.status == 404:
            assert answer.problem()["type"] == "/problems/model-not-found"
            return
        if one.is_streaming and "event: error" in answer.text:
            assert one.lives != self.lives or "crash" in self.actions, answer.text
            return
        assert answer.status == 200, answer.text
        revision = answer.headers["firstlight-revision"]
        assert revision in one.in_traffic
        assert answer.is_whole and answer.text.count(revision) == (5 if one.is_streaming else 1)
        assert answer.text.count("@") == answer.text.count(revision), "answered by two"

    # -- the clients ---------------------------------------------------------------------------

    async def _call(self) -> None:
        while True:
            for _ in range(self.chance.choice([1, 1, 1, 8])):
                self._send()
            await asyncio.sleep(self.chance.expovariate(1.5))

    def _send(self) -> None:
        is_streaming = self.chance.random() < 0.5
        session = self.chance.choice([None, "a", "b", "c"])
        exchange = self.edge.start(
            "POST",
            "/v1/models/chat/invoke",
            b'{"prompt": "hi", "stream": %s}' % (b"true" if is_streaming else b"false"),
            headers={} if session is None else {"firstlight-session": session},
        )
        revisions = frozenset(it.name for it in self.world.deployments.in_traffic())
        self.sent.append(Sent(exchange, revisions, self.lives, is_streaming))

    # -- the replicas --------------------------------------------------------------------------

    def _script(self, before: Replica | None, after: Replica) -> None:
        if after.state is ReplicaState.READY:
            self.edge.replicas.scripts[after.replica_id] = self._serve(after.replica_id)

    def _serve(self, replica_id: ReplicaId) -> Script:
        """Says which revision it is, at once or in five events; a draining one takes nothing."""

        async def serve(request: ReplicaRequest, wire: Wire) -> None:
            replica = self.world.fleet.replica(replica_id)
            if replica is None or replica.state is not ReplicaState.READY:
                self.refused += 1
                wire.head(503)
                return
            seconds = self.chance.uniform(0.05, LONGEST_S)
            name = replica.revision.name.encode()
            if b'"stream": true' not in request.body:
                await asyncio.sleep(seconds)
                wire.head(200, [(b"content-type", b"application/json")])
                await wire.write(b'"%s"' % name)
                return
            wire.head(200, [(b"content-type", b"text/event-stream")])
            for _ in range(5):
                await asyncio.sleep(seconds / 5)
                await wire.write(b"data: %s\n\n" % name)

        return serve

    # -- what is changed -----------------------------------------------------------------------

    async def _change(self) -> None:
        ends_at = self.world.now() + SECONDS
        doing: dict[str, Callable[[], Awaitable[object]]] = {
            name: getattr(self, name) for name in self.actions
        }
        while self.world.now() < ends_at:
            await asyncio.sleep(self.chance.expovariate(1 / 3))
            await self.edge.settled()  # who was sent is admitted now
            [name] = self.chance.choices(list(self.actions), list(self.actions.values()))
            await doing[name]()
            self.edge.lines.check_integrity()

    async def deploy(self, *, takes_traffic: bool = True) -> None:
        self.grace += 1
        spec = {
            "scaling": {"grace": self.grace % 7, "max": 2, "min": self.chance.choice([0, 0, 1])},
            "limits": {"max_concurrency": self.chance.choice([4, 8])},
            "timeouts": {"execution": 20 + self.grace},
            "resources": {"memory_mib": 1024},
        }
        await self.world.deployments.deploy(
            a_spec(**spec), takes_traffic=takes_traffic, now=self.world.now()
        )

    async def deploy_dark(self) -> None:
        await self.deploy(takes_traffic=False)

    async def split(self) -> None:
        some = self.chance.sample(names := await self._kept(), k=min(3, len(names)))
        cuts = sorted(self.chance.sample(range(1, 100), len(some) - 1))
        percents = [b - a for a, b in zip([0, *cuts], [*cuts, 100], strict=True)]
        await self.world.deployments.split(CHAT, dict(zip(some, percents, strict=True)))

    async def switch(self) -> None:
        await self.world.deployments.rollback(CHAT, self.chance.choice(await self._kept()))

    async def rollback(self) -> None:
        record, _ = await self.world.deployments.history(CHAT)
        if record.previous is not None:
            await self.world.deployments.rollback(CHAT)

    async def delete(self) -> None:
        self.lives += 1
        await self.world.deployments.delete(CHAT, now=self.world.now())
        await self.deploy()

    async def crash(self) -> None:
        replicas = self.world.fleet.replicas()
        if replicas:
            self.world.machine().crash(self.chance.choice(replicas).replica_id)

    async def _kept(self) -> list[RevisionName]:
        _, revisions = await self.world.deployments.history(CHAT)
        return [it.name for it in revisions]


def go(seed: int, actions: dict[str, int], *, memory_bytes: int = 16 * GIB) -> None:
    chance = random.Random(seed)
    life = Life(
        stages=(Climbing(Stage.RUNTIME, 0.1), Climbing(Stage.WEIGHTS, chance.uniform(0.1, 5))),
        drain_s=LONGEST_S + 1,
    )

    async def main() -> None:
        async with World(script=life, shape=MachineShape(memory_bytes=memory_bytes)) as world:
            edge = EdgeWorld(world)
            traffic = Traffic(edge, chance, actions)
            await traffic.run()
            assert len(traffic.sent) > 120
            await world.deployments.delete(CHAT, now=world.now())
            await asyncio.sleep(60)
            assert world.fleet.replicas() == ()
            assert world.scaled() == set() and world.reconciler._plans == {}
            assert edge.lines._lines == {}
            await edge.replicas.close()

    run_virtual(main())


@pytest.mark.parametrize("seed", range(3))
def test_changing_what_answers_drops_nothing(seed: int):
    go(seed, CHANGES)


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_dropped_where_only_two_replicas_have_room(seed: int):
    go(seed, CHANGES, memory_bytes=3 * GIB)


@pytest.mark.parametrize("seed", range(3))
def test_deletions_and_crashes_end_in_an_answer_or_a_typed_error(seed: int):
    go(seed, CHANGES | HARM)

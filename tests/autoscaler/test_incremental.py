"""A tick that looks only where something may have changed decides as one that looks everywhere."""

import asyncio
import math
import random
import secrets
from collections.abc import Set
from contextlib import suppress
from itertools import count
from typing import Any

import pytest

from control_plane.autoscaler.decider import NOISE, decide, least_replicas
from control_plane.autoscaler.decision import Observed, Panic, Tuning
from control_plane.autoscaler.demand import Demand, DemandMeter
from control_plane.autoscaler.experience import Experience
from control_plane.autoscaler.horizon import band_of, stands_until
from control_plane.autoscaler.tracked import Tracked
from control_plane.capacity.simulated.machine import MachineShape
from control_plane.capacity.simulated.script import Climbing, Script
from infra.agenda import Agenda
from infra.contracts.base import ModelName, NodeId, ReplicaId, RevisionName
from infra.contracts.model_spec import Scaling
from infra.contracts.revision import ReplicaState, Revision
from infra.contracts.stage import Stage
from infra.errors import NoCapacity
from tests.fleet.makers import a_revision
from tests.fleet.test_replica import a_replica
from tests.fleet.world import SLOW, World, run

MODELS = tuple(f"m{number}" for number in range(6))
History = list[tuple[object, ...]]


def scan_everything(world: World) -> None:
    """Makes every tick look at every revision, and decide."""
    changed = world.gateway.changed

    def look_first() -> Set[RevisionName]:
        world.autoscaler.look_everywhere()
        return changed()

    world.gateway.changed = look_first  # type: ignore[method-assign]


class Decisions:
    """Counts the decisions that are made, among them those that change nothing, and can fail."""

    def __init__(self, world: World) -> None:
        self.made = 0
        self.last_for: RevisionName | None = None
        self.fails_for: RevisionName | None = None
        self.failures = 0
        self._set_desired = world.reconciler.set_desired
        world.reconciler.set_desired = self._count  # type: ignore[method-assign]

    def _count(self, revision: Revision, *arguments: Any, **options: Any) -> None:
        if revision.name == self.fails_for:
            self.failures += 1
            raise ZeroDivisionError
        self.made, self.last_for = self.made + 1, revision.name
        self._set_desired(revision, *arguments, **options)


def sections(chance: random.Random) -> dict[str, dict[str, object]]:
    scaling: dict[str, object] = {
        "min": chance.choice([0, 0, 1]),
        "max": chance.randrange(2, 9),
        "target_concurrency": chance.choice([0.5, 1, 4]),
        "grace": chance.choice(["auto", 5, 90]),
        "cold_penalty": chance.choice([0, 60]),
    }
    if chance.random() < 0.3:
        scaling["schedule"] = [{"cron": "*/7 * * * *", "duration": 90, "replicas": 2}]
    return {"scaling": scaling, "limits": {"max_concurrency": chance.choice([1, 4])}}


async def traffic(world: World, chance: random.Random, *, turns: int, longest_s: float) -> None:
    """Calm, bursts and long silences; now and then a crash, another revision, a machine lost, one
    whose replicas an earlier control plane started, or nothing known of the demand."""
    adopted = count()
    for _ in range(turns):
        model, kind = chance.choice(MODELS), chance.random()
        machines = world.capacity.machines()  # one, or none after a long silence
        if kind < 0.1:
            for _ in range(chance.randrange(5, 40)):
                world.request(model, seconds=chance.randrange(1, 40) / 8)
        elif kind < 0.4:
            for _ in range(chance.randrange(3, 30)):
                world.request(model, seconds=chance.randrange(1, 400) / 8)
                await asyncio.sleep(chance.randrange(1, 16) / 8)
        elif kind < 0.55:
            await asyncio.sleep(chance.choice([20, 100, longest_s]) + chance.randrange(8) / 8)
        elif kind < 0.6:
            await world.deploy(model, **sections(chance))
        elif kind < 0.65 and (
            replicas := [(one, it.replica_id) for one in machines for it in one.replicas()]
        ):
            machine, replica_id = chance.choice(replicas)
            machine.crash(replica_id)
        elif kind < 0.67 and world.deployments.get(ModelName(model)) is not None:
            await world.deployments.delete(ModelName(model), now=world.now())
            await asyncio.sleep(1)
            await world.deploy(model, **sections(chance))
        elif kind < 0.75 and (revision := world.deployments.get(ModelName(model))) is not None:
            node_id = NodeId(f"old-{next(adopted)}")
            with suppress(NoCapacity):
                world.capacity.add(node_id)
            if node_id not in {it.node_id for it in world.capacity.machines()}:
                continue
            for number in range(chance.randrange(1, revision.spec.scaling.max + 1)):
                replica_id = ReplicaId(f"{node_id}-{number}")
                replica = a_replica(replica_id=replica_id, revision=revision, node_id=node_id)
                world.capacity.machine(node_id).restore(replica.assignment())
            await asyncio.sleep(chance.choice([0, 3, 30]))
        elif kind < 0.77 and len(machines) > 1:
            await chance.choice(machines).kill(is_noticed=chance.random() < 0.5)
        elif kind < 0.8:
            world.gateway.is_silent = True
            await asyncio.sleep(chance.choice([1, 30, 100]))
            world.gateway.is_silent = False
        elif kind < 0.83 and (revision := world.deployments.get(ModelName(model))) is not None:
            lasts_s = chance.choice([10, 200])
            world.autoscaler.warm(revision, chance.randrange(3), until=world.now() + lasts_s)
        else:
            world.request(model, seconds=chance.randrange(1, 80) / 8)
            await asyncio.sleep(chance.randrange(8) / 8)


def history_of(
    seed: int, *, is_full: bool, patch: pytest.MonkeyPatch, turns: int, longest_s: float
) -> tuple[History, int]:
    """All decisions and all moves of replicas of one random history, and how many were made."""
    numbers = count()
    patch.setattr(secrets, "token_hex", lambda _: f"{next(numbers):08x}")
    chance = random.Random(seed)
    stages = (Climbing(Stage.WEIGHTS, chance.choice([0.5, 4, 16])),)

    async def main() -> tuple[History, int]:
        shape = MachineShape(memory_bytes=chance.choice([12, 64]) << 30)
        script = Script(stages=stages, drain_s=chance.choice([0.5, 20]))
        async with World(shape=shape, script=script, most=4) as world:
            if is_full:
                scan_everything(world)
            decisions, seen = Decisions(world), []
            world.autoscaler.subscribe(
                lambda record: seen.append(
                    (record.at, record.revision, record.decision.replicas, record.decision.reason)
                )
            )
            for model in MODELS:
                await world.deploy(model, **sections(chance))
            await traffic(world, chance, turns=turns, longest_s=longest_s)
            await asyncio.sleep(1000)
            moves = [(at, replica, state) for at, replica, state in world.history]
            return [*seen, *moves], decisions.made

    return run(main())


@pytest.mark.parametrize(
    ("seed", "turns", "longest_s"),
    [
        *((seed, 60, 400) for seed in range(2)),
        *(pytest.param(seed, 80, 400, marks=pytest.mark.real) for seed in range(2, 5)),
        pytest.param(99, 100, 6 * 3600, marks=pytest.mark.real),
    ],
)
def test_a_tick_decides_as_a_full_scan_would(
    seed: int, turns: int, longest_s: float, monkeypatch: pytest.MonkeyPatch
):
    incremental, few = history_of(
        seed, is_full=False, patch=monkeypatch, turns=turns, longest_s=longest_s
    )
    full, many = history_of(seed, is_full=True, patch=monkeypatch, turns=turns, longest_s=longest_s)
    assert incremental == full
    assert few < 0.9 * many


@pytest.mark.parametrize("seed", range(4))
def test_a_decision_stands_as_long_as_it_was_said_to(seed: int):
    """One revision, decided every second for hours: what a tick would have passed by is decided
    just the same, and leaves the panic as it was."""
    chance, tuning = random.Random(seed), Tuning()
    passed_by = passed_by_in_panic = decided = 0
    for _ in range(12):
        scaling = Scaling(
            min=chance.choice([0, 0, 1, 3]),
            max=chance.choice([3, 6, 20]),
            target_concurrency=chance.choice([0.5, 1, 4]),
            grace=chance.choice([5, 40, 400]),
        )
        revision = a_revision(scaling=scaling.model_dump())
        tracked = Tracked(
            revision, place=0, tuning=tuning, experience=Experience(), learnt=lambda _: None
        )
        life = Life(chance, scaling)
        until, before = -math.inf, None
        for second in range(1200):
            now = 1e6 + second + chance.choice([0, chance.uniform(-0.2, 0.2)])
            is_changed = life.go_on(tracked, now=now)
            demand = life.meter.read(now=now)
            tracked.heed(demand, now=now)
            if is_changed:
                tracked.changed_at, until = now, -math.inf
            is_as_it_was = not life.has_moved and (now < until or tracked.stays(demand, now=now))
            facts = life.observe(tracked, demand, now=now)
            decision = decide(scaling, facts, now=now)
            decided += 1
            if before is not None and is_as_it_was:
                assert (decision.replicas, decision.panic) == before, (second, facts.panic)
                passed_by += 1
                passed_by_in_panic += decision.panic is not None
            tracked.panic = decision.panic
            least = least_replicas(scaling, facts)
            tracked.band = band_of(scaling, facts, decision, least=least, now=now, tuning=tuning)
            until = stands_until(
                facts, decision, least=least, now=now, changed_at=tracked.changed_at, tuning=tuning
            )
            before = decision.replicas, decision.panic
            life.desired = decision.replicas
    assert passed_by > 0.3 * decided and passed_by_in_panic > 0.01 * decided


class Life:
    """What happens to one revision: requests, replicas that load and go, a take-over."""

    def __init__(self, chance: random.Random, scaling: Scaling) -> None:
        self.meter = DemandMeter()
        self.desired = 0
        self.has_moved = False
        self._chance = chance
        self._scaling = scaling
        self._ready = 0
        self._ready_at: list[float] = []
        self._rate = 0.0
        self._seconds = 1.0

    def go_on(self, tracked: Tracked, *, now: float) -> bool:
        """A second passes; whether requests came, left or moved."""
        chance = self._chance
        counts = self._ready, len(self._ready_at)
        self._move_replicas(tracked, now=now)
        is_adopted = chance.random() < 0.003
        if is_adopted:
            self._adopt(tracked, now=now)
        if chance.random() < 0.02:  # another kind of load begins
            self._rate = chance.choice([0, 0, 0.05, 1, 5, 30])
            self._seconds = chance.choice([0.2, 2, 20])
        self.has_moved = is_adopted or counts != (self._ready, len(self._ready_at))
        return self._move_requests(now)

    def observe(self, tracked: Tracked, demand: Demand, *, now: float) -> Observed:
        return Observed(
            desired=self.desired,
            ready=self._ready,
            loading=len(self._ready_at),
            demand=demand,
            stable_mean=tracked.stable_mean(demand, now=now),
            panic_mean=tracked.panic_mean(demand, now=now),
            idle_since=tracked.idle_since(demand),
            grace_s=tracked.grace_s(),
            panic=tracked.panic,
        )

    def _move_replicas(self, tracked: Tracked, *, now: float) -> None:
        self._ready = min(self._ready, self.desired)
        missing = self.desired - self._ready - len(self._ready_at)
        self._ready_at += [now + self._chance.choice([0, 5, 20])] * max(0, missing)
        done = [at for at in self._ready_at if at <= now]
        self._ready_at = [at for at in self._ready_at if at > now]
        self._ready += len(done)
        if done:
            tracked.ready_at = now

    def _adopt(self, tracked: Tracked, *, now: float) -> None:
        """So many ran before the control plane."""
        self._ready = self.desired = self._chance.randrange(1, self._scaling.max + 1)
        self._ready_at, tracked.ready_at = [], now
        tracked.panic = Panic(now + 60, self._ready)

    def _move_requests(self, now: float) -> bool:
        meter, chance = self.meter, self._chance
        arrived = sum(chance.random() < self._rate / 30 for _ in range(30))
        left = sum(chance.random() < 1 / (1 + self._seconds) for _ in range(meter.in_flight))
        for ago_s in sorted((chance.uniform(0, 0.5) for _ in range(arrived)), reverse=True):
            meter.arrive(now=now - ago_s)
        for _ in range(left):
            meter.leave(was_in_flight=True, now=now)
        free = max(0, math.ceil(2 * self._scaling.target_concurrency * self._ready))
        moved = max(0, min(meter.waiting, free - meter.in_flight))
        for _ in range(moved):
            meter.dispatch(now=now)
        return bool(arrived or left or moved)


def test_a_revision_that_cannot_be_decided_for_delays_no_other_and_is_not_forgotten():
    async def main() -> None:
        async with World() as world:
            for name in ("a", "b", "c"):
                await world.deploy(name, scaling={"grace": 20, "min": 0})
                await world.request(name)
            decisions = Decisions(world)
            decisions.fails_for = RevisionName("b@1")
            await world.until(lambda: decisions.failures == 30)
            assert [world.alive(name) for name in ("a", "c")] == [[], []]
            assert world.alive("b") != []
            decisions.fails_for = None
            await asyncio.sleep(3)
            assert world.alive("b") == []
            failed = [it["event"] for it in world.logs if it["event"].startswith("autoscaler")]
            assert failed == ["autoscaler.look-failed"] * 30
            world.logs.clear()

    run(main())


def test_a_long_tick_lets_others_run_and_leaves_nobody_out():
    async def main() -> None:
        async with World(shape=MachineShape(memory_bytes=1 << 50)) as world:
            names = [f"m{number}" for number in range(130)]
            for name in names:
                await world.deploy(name, scaling={"grace": 20, "sleep": 0})
            await asyncio.gather(*(world.request(name) for name in names))
            decisions = Decisions(world)
            turns = []

            async def other() -> None:
                while True:
                    turns.append(decisions.made)
                    await asyncio.sleep(0)

            busy = asyncio.create_task(other())
            for _ in world.autoscaler.ticking(world.now() + 1):
                await asyncio.sleep(0)
            busy.cancel()
            assert 32 in turns and decisions.made == 130
            await asyncio.sleep(40)
            assert world.fleet.replicas() == ()

    run(main())


def test_a_tick_that_decides_much_lets_others_run_more_often():
    async def main() -> None:
        async with World(shape=MachineShape(memory_bytes=1 << 50)) as world:
            for number in range(60):
                await world.deploy(f"m{number}", scaling={"grace": 20, "sleep": 0})
            await asyncio.gather(*(world.request(f"m{number}") for number in range(60)))
            await asyncio.sleep(5)
            calm = sum(1 for _ in world.autoscaler.ticking(world.now() + 1))
            assert sum(1 for _ in world.autoscaler.ticking(world.now() + 30)) == calm + 20
            assert len(world.moves(ReplicaState.DRAINING)) == 60

    run(main())


def test_a_tick_with_too_much_to_decide_puts_off_what_nobody_waits_for_and_catches_up_soon():
    async def main() -> None:
        shape, tuning = MachineShape(memory_bytes=1 << 50), Tuning(most_work=240)
        async with World(shape=shape, script=SLOW, tuning=tuning) as world:
            for number in range(60):
                await world.deploy(f"m{number}", scaling={"grace": 20, "sleep": 0})
            await world.deploy("late")
            await asyncio.gather(*(world.request(f"m{number}") for number in range(60)))
            await asyncio.sleep(19)
            held = world.request("late")
            await asyncio.sleep(0)
            decisions, began_at = Decisions(world), world.now()
            for _ in world.autoscaler.ticking(world.now() + 3):
                pass
            assert 0 < decisions.made < 10  # of 60 whose grace is over
            assert decisions.last_for == "late@1"  # its request waits, though it is the last
            assert world.autoscaler.is_behind
            await world.until(lambda: len(world.moves(ReplicaState.DRAINING)) == 60, every_s=0.1)
            assert world.now() - began_at < 5 and not world.autoscaler.is_behind
            await held

    run(main())


def test_a_take_over_that_is_decided_bit_by_bit_keeps_all_that_runs():
    async def main() -> None:
        tuning = Tuning(most_work=240)
        shape = MachineShape(memory_bytes=1 << 50)
        async with World(shape=shape, tuning=tuning, most=2) as world:
            node_id = NodeId("old")
            world.capacity.add(node_id)
            machine = world.capacity.machine(node_id)
            for number in range(60):
                revision = await world.deploy(f"m{number}", scaling={"grace": 20, "max": 3})
                for place in range(2):
                    replica_id = ReplicaId(f"m{number}-{place}")
                    replica = a_replica(replica_id=replica_id, revision=revision, node_id=node_id)
                    machine.restore(replica.assignment())
            await asyncio.sleep(10)
            assert not world.autoscaler.is_behind
            assert world.started() == 120 and world.moves(ReplicaState.DRAINING) == []
            for number in range(60):
                records = world.autoscaler.decisions(RevisionName(f"m{number}@1"))
                assert [it.decision.replicas for it in records] == [0, 2]

    run(main())


def test_within_its_band_a_decision_is_made_again():
    chance, held = random.Random(7), 0
    for _ in range(5_000):
        ready = chance.randrange(1, 12)
        most = chance.randrange(ready, 14)
        scaling = Scaling(
            min=chance.randrange(ready + 1),
            max=most,
            target_concurrency=chance.choice([0.5, 1, 3, 8]),
        )
        stable, panic = (
            scaling.target_concurrency
            * chance.choice([chance.uniform(0, 15), chance.randrange(15)])
            for _ in range(2)
        )
        first = observed(ready, stable=scaling.target_concurrency * ready, panic=0)
        band = band_of(
            scaling,
            first,
            decide(scaling, first, now=0),
            least=least_replicas(scaling, first),
            now=0,
            tuning=Tuning(),
        )
        assert band is not None
        again = decide(scaling, observed(ready, stable=stable, panic=panic), now=1)
        is_same = again.replicas == ready and again.panic is None
        target = scaling.target_concurrency
        is_within = (
            band.low < stable / target - NOISE <= band.high and panic / target - NOISE <= band.burst
        )
        # What the one request in flight keeps is no part of a band: it may end.
        is_kept = is_same and ready <= math.ceil(1 / target)
        assert is_within == is_same or is_kept
        held += is_same
    assert 500 < held < 4_500


def observed(ready: int, *, stable: float, panic: float) -> Observed:
    return Observed(
        desired=ready,
        ready=ready,
        loading=0,
        demand=Demand(1, 0, 0.0, 0.0),
        stable_mean=max(stable, 2 * NOISE),
        panic_mean=max(panic, 2 * NOISE),
    )


def test_a_revision_is_on_the_agenda_once_at_the_last_time_that_was_named():
    agenda, chat, other = Agenda[RevisionName](), RevisionName("chat@1"), RevisionName("other@1")
    agenda.add_at(chat, 10)
    agenda.add_at(chat, 20)
    agenda.add_at(other, 15)
    assert agenda.take(now=10) == set()
    agenda.add(other)
    assert agenda.take(now=12) == {other}
    assert agenda.take(now=20) == {chat}
    agenda.add_at(chat, 30)
    agenda.add(other)
    agenda.forget(chat)
    agenda.forget(other)
    assert agenda.take(now=40) == set()
    agenda.add_by(chat, 60)
    agenda.add_by(chat, 50)
    agenda.add_by(chat, 70)
    assert agenda.take(now=55) == {chat}
    assert agenda.take(now=99) == set()


def test_those_whose_time_has_come_can_be_taken_some_at_a_time():
    agenda = Agenda[int]()
    for key in range(5):
        agenda.add_at(key, 10 + key)
    agenda.add_at(0, 30)
    assert agenda.take(now=14, most=2) == {1} and agenda.is_due(now=14)
    assert agenda.take(now=14, most=9) == {2, 3, 4} and not agenda.is_due(now=14)
    assert agenda.take(now=30) == {0}

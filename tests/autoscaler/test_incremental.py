"""A tick that looks only where something may have changed decides as one that looks everywhere."""

import asyncio
import math
import random
import secrets
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from control_plane.autoscaler.decider import (
    NOISE,
    Observed,
    Tuning,
    decide,
    least_replicas,
)
from control_plane.autoscaler.demand import Demand
from control_plane.autoscaler.horizon import band_of
from control_plane.autoscaler.loop import Autoscaler
from control_plane.autoscaler.tracked import Tracked
from control_plane.capacity.simulated import Climbing, MachineShape, Script
from infra.agenda import Agenda
from infra.contracts.base import ModelName, RevisionName
from infra.contracts.model_spec import Scaling
from infra.contracts.stage import Stage
from tests.fleet.world import World, run

MODELS = tuple(f"m{number}" for number in range(6))
History = list[tuple[object, ...]]


def scan_everything(autoscaler: Autoscaler) -> None:
    """Makes every tick look at every revision, and decide."""
    ticking = autoscaler._ticking

    def full_ticking(now: float) -> Iterator[None]:
        autoscaler._look_everywhere()
        yield from ticking(now)

    autoscaler._ticking = full_ticking  # type: ignore[method-assign]


class Looks:
    """Counts the decisions that are made, among them those that change nothing."""

    def __init__(self, autoscaler: Autoscaler) -> None:
        self.decisions = 0
        self._decide_on = autoscaler._decide_on
        autoscaler._decide_on = self._count  # type: ignore[method-assign]

    def _count(self, *arguments: object, **options: object) -> None:
        self.decisions += 1
        self._decide_on(*arguments, **options)  # type: ignore[arg-type]


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


async def traffic(world: World, chance: random.Random) -> None:
    """Calm, bursts and long silences; now and then a crash, or another revision."""
    machines = world.capacity.machines  # one, or none after a long silence
    for _ in range(60):
        model, kind = chance.choice(MODELS), chance.random()
        if kind < 0.1:
            for _ in range(chance.randrange(5, 40)):
                world.request(model, seconds=chance.randrange(1, 40) / 8)
        elif kind < 0.4:
            for _ in range(chance.randrange(3, 30)):
                world.request(model, seconds=chance.randrange(1, 400) / 8)
                await asyncio.sleep(chance.randrange(1, 16) / 8)
        elif kind < 0.6:
            await asyncio.sleep(chance.choice([20, 100, 400]) + chance.randrange(8) / 8)
        elif kind < 0.65:
            await world.deploy(model, **sections(chance))
        elif kind < 0.7 and (replicas := [it for one in machines() for it in one.replicas()]):
            machines()[0].crash(replicas[0].replica_id)
        elif kind < 0.72 and world.deployments.get(ModelName(model)) is not None:
            await world.deployments.delete(ModelName(model), now=world.now())
            await asyncio.sleep(1)
            await world.deploy(model, **sections(chance))
        else:
            world.request(model, seconds=chance.randrange(1, 80) / 8)
            await asyncio.sleep(chance.randrange(8) / 8)


def history_of(seed: int, *, is_full: bool, patch: pytest.MonkeyPatch) -> tuple[History, int]:
    """All decisions and all moves of replicas of one random history, and how many were made."""
    numbers = count()
    patch.setattr(secrets, "token_hex", lambda _: f"{next(numbers):08x}")
    chance = random.Random(seed)
    stages = (Climbing(Stage.WEIGHTS, chance.choice([0.5, 4, 16])),)

    async def main() -> tuple[History, int]:
        shape = MachineShape(memory_bytes=chance.choice([12, 64]) << 30)
        async with World(shape=shape, script=Script(stages=stages, drain_s=0.5)) as world:
            if is_full:
                scan_everything(world.autoscaler)
            looks, seen = Looks(world.autoscaler), []
            world.autoscaler.subscribe(
                lambda record: seen.append((record.at, record.revision, *record.decision[:2]))
            )
            for model in MODELS:
                await world.deploy(model, **sections(chance))
            await traffic(world, chance)
            await asyncio.sleep(1000)
            moves = [(at, replica, state) for at, replica, state in world.history]
            return [*seen, *moves], looks.decisions

    return run(main())


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.real) for seed in range(3, 40))]
)
def test_a_tick_decides_as_a_full_scan_would(seed: int, monkeypatch: pytest.MonkeyPatch):
    incremental, few = history_of(seed, is_full=False, patch=monkeypatch)
    full, many = history_of(seed, is_full=True, patch=monkeypatch)
    assert incremental == full
    assert few < 0.9 * many


def test_a_revision_that_cannot_be_decided_for_delays_no_other_and_is_not_forgotten():
    async def main() -> None:
        async with World() as world:
            for name in ("a", "b", "c"):
                await world.deploy(name, scaling={"grace": 20, "min": 0})
                await world.request(name)
            failures = []
            decide_on = world.autoscaler._decide_on

            def fickle(tracked: Tracked, *arguments: Any, **options: Any) -> None:
                if tracked.name == "b@1" and len(failures) < 40:
                    failures.append(world.now())
                    raise ZeroDivisionError
                decide_on(tracked, *arguments, **options)

            world.autoscaler._decide_on = fickle  # type: ignore[method-assign]
            await asyncio.sleep(30)
            assert [world.alive(name) for name in ("a", "c")] == [[], []]
            assert world.alive("b") != []
            await asyncio.sleep(40)
            assert len(failures) == 40 and world.alive("b") == []
            assert sum(it["event"] == "autoscaler.look-failed" for it in world.logs) == 40
            world.logs.clear()

    run(main())


def test_a_long_tick_lets_others_run_and_leaves_nobody_out():
    async def main() -> None:
        async with World(shape=MachineShape(memory_bytes=1 << 50)) as world:
            names = [f"m{number}" for number in range(300)]
            for name in names:
                await world.deploy(name, scaling={"grace": 20, "sleep": 0})
            await asyncio.gather(*(world.request(name) for name in names))
            ticks = Looks(world.autoscaler)
            turns = []

            async def other() -> None:
                while True:
                    turns.append(ticks.decisions)
                    await asyncio.sleep(0)

            busy = asyncio.create_task(other())
            for _ in world.autoscaler._ticking(world.now() + 1):
                await asyncio.sleep(0)
            busy.cancel()
            assert 250 in turns and ticks.decisions == 300
            await asyncio.sleep(40)
            assert world.fleet.replicas() == ()

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

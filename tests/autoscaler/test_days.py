"""Days of real traffic for dozens of models through the real loops: nothing breaks, little is paid.

The requests are those of the Azure traces beside this file, dealt out to the models by popularity
and slowed down until they fill the days, so that they come in bursts as they did, with hours
between.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.measure.arrivals import Request, read_traces, split
from control_plane.capacity.simulated.machine import MachineShape
from control_plane.capacity.simulated.script import Climbing, Script
from control_plane.fleet.node_sessions import LeaseTerms
from control_plane.fleet.patience import Patience
from control_plane.fleet.replica import Replica
from infra.contracts.base import ModelName, RevisionName
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Stage
from tests.fleet.world import Outcome, World, run

pytestmark = pytest.mark.real

TRACES = Path(__file__).parent / "traces"
DAY_S = 86_400.0
GIB_EACH = 2
CLIMB = Script(
    stages=(Climbing(Stage.RUNTIME, 2, steps=1), Climbing(Stage.WEIGHTS, 12, steps=1)), drain_s=0.5
)


def requests_of(days: float, models: int, *, every: int) -> dict[str, list[Request]]:
    """Each model's requests, as they come in so many days; every so manieth of the traces'."""
    traffic: dict[str, list[Request]] = {}
    for kind, trace in read_traces(TRACES).items():
        requests = trace[::every]
        slower = days * DAY_S / requests[-1].at
        for number, part in enumerate(split(requests, models // 2)):
            name = f"{kind[-4:]}-{number}"
            traffic[name] = [Request(it.at * slower, it.seconds) for it in part]
    return traffic


class Watcher:
    """Checks what must hold at every change and at every tick, and keeps the accounts."""

    def __init__(self, world: World, *, every_s: float) -> None:
        self._world = world
        self._every_s = every_s
        self._began: dict[str, tuple[ModelName, float]] = {}
        self.kept: dict[ModelName, list[tuple[float, float]]] = defaultdict(list)
        self.most_alive = 0
        world.fleet.subscribe(self._replica_changed)

    def _replica_changed(self, before: Replica | None, after: Replica) -> None:
        fleet, scaling = self._world.fleet, after.revision.spec.scaling
        kept = [it for it in fleet.of_revision(after.revision.name) if it.is_serving_or_loading]
        assert len(kept) <= scaling.max
        self.most_alive = max(self.most_alive, len(fleet.replicas()))
        for node in fleet.nodes():
            held = len(fleet.on_node(node.node_id)) * GIB_EACH << 30
            assert held <= node.memory_bytes
        if before is not None and before.is_loading:
            assert after.is_loading or after.state is ReplicaState.READY, "it was stopped loading"
        if after.state is ReplicaState.READY and (before is None or before.is_loading):
            self._began[after.replica_id] = (after.model, self._world.now())
        elif after.replica_id in self._began and after.state is not ReplicaState.READY:
            model, began_at = self._began.pop(after.replica_id)
            self.kept[model].append((began_at, self._world.now()))

    async def run(self) -> None:
        """Who waits has a start, or a machine that others still hold, within a tick."""
        while True:
            await asyncio.sleep(self._every_s)
            for name, meter in self._world.gateway._meters.items():
                assert meter.waiting == 0 or self._world.reconciler.desired(name) > 0


def idle_gaps(outcomes: Sequence[Outcome]) -> list[tuple[float, float]]:
    """When nothing was asked for, between the first request and the last."""
    gaps, free_at = [], None
    for outcome in sorted(outcomes, key=lambda it: it.arrived_at):
        if free_at is not None and outcome.arrived_at > free_at:
            gaps.append((free_at, outcome.arrived_at))
        assert outcome.ended_at is not None
        free_at = max(free_at or 0.0, outcome.ended_at)
    return gaps


def costs(
    outcomes: Sequence[Outcome], kept: Sequence[tuple[float, float]], cold_cost_s: float
) -> tuple[float, float, int]:
    """What keeping one replica cost, what it costs a clairvoyant, and how often it stopped."""
    ours = best = cold_cost_s  # the first cold start
    stops = 0
    for idle_from, idle_to in idle_gaps(outcomes):
        ends = [until for _, until in kept if idle_from <= until < idle_to]
        until = ends[0] if ends else idle_to
        ours += until - idle_from + (cold_cost_s if ends else 0.0)
        best += min(idle_to - idle_from, cold_cost_s)
        stops += bool(ends)
    return ours, best, stops


async def replay(world: World, traffic: dict[str, list[Request]]) -> dict[str, list[Outcome]]:
    """Every request at its time; what each got."""
    began_at = world.now()
    tasks: dict[str, list[asyncio.Task[Outcome]]] = defaultdict(list)
    order = sorted((it.at, name, it.seconds) for name, part in traffic.items() for it in part)
    for at, name, seconds in order:
        await asyncio.sleep(began_at + at - world.now())
        tasks[name].append(world.request(name, seconds=seconds))
    return {name: await asyncio.gather(*running) for name, running in tasks.items()}


def live(*, days: float, models: int, tick_s: float, gib: int, every: int = 1) -> None:
    traffic = requests_of(days, models, every=every)

    async def main() -> None:
        world = World(
            shape=MachineShape(memory_bytes=gib << 30),
            script=CLIMB,
            terms=LeaseTerms(lease_s=600, look_s=100),
            patience=Patience(sweep_s=10 * tick_s),
            tick_s=tick_s,
        )
        watcher = Watcher(world, every_s=tick_s)
        async with world:
            watching = world.tasks.start(watcher.run(), name="watcher")
            for number, name in enumerate(traffic):
                scaling = {
                    "max": 1 if number % 3 else 4,
                    "target_concurrency": 2,
                    "cold_penalty": 60 * (number % 4),
                    "standby": 0,
                }
                limits = {"max_concurrency": 32 if number % 3 else 4}
                resources = {"memory_mib": GIB_EACH << 10}
                await world.deploy(name, scaling=scaling, limits=limits, resources=resources)
            outcomes = await replay(world, traffic)
            assert [it.error for part in outcomes.values() for it in part if it.error] == []
            assert (
                sum(map(len, outcomes.values())) == sum(map(len, traffic.values())) == 2700 / every
            )
            await world.until(lambda: not world.fleet.replicas(), seconds=2000)
            assert not watching.done() or watching.exception() is None
            assert all(meter.waiting == meter.in_flight == 0 for meter in world.gateway.meters())
            if gib == ROOMY:
                check_costs(world, watcher, outcomes, tick_s)
            else:
                assert watcher.most_alive == gib // GIB_EACH, "room was never short"

    run(main())


def check_costs(
    world: World, watcher: Watcher, outcomes: dict[str, list[Outcome]], tick_s: float
) -> None:
    """Twice the clairvoyant's at most, and a tick late at every stop, of each model alone."""
    all_ours = all_best = 0.0
    for name, part in outcomes.items():
        tracked = world.tracked(RevisionName(f"{name}@1"))
        scaling = tracked.revision.spec.scaling
        if scaling.max == 1:
            cold_cost_s = tracked.experience.cold_start_s + scaling.cold_penalty
            ours, best, stops = costs(part, watcher.kept[ModelName(name)], cold_cost_s)
            assert ours <= 2 * best + tick_s * stops
            all_ours, all_best = all_ours + ours, all_best + best
    assert all_best > 0 and all_ours <= 1.7 * all_best


ROOMY, TIGHT = 128, 10


def test_a_client_who_comes_just_when_the_replica_has_gone_costs_twice_at_most():
    async def main() -> None:
        world = World(script=CLIMB)
        watcher = Watcher(world, every_s=1)
        async with world:
            await world.deploy("late", scaling={"cold_penalty": 45, "standby": 0, "sleep": 0})
            outcomes = [await world.request("late")]
            for number in range(120):
                if number % 4 == 3:  # or lets it earn some trust first
                    await asyncio.sleep(world.tracked(RevisionName("late@1")).grace_s() / 2)
                else:
                    await world.until(lambda: not world.alive("late"), seconds=300, every_s=0.25)
                outcomes.append(await world.request("late"))
            cold_cost_s = world.tracked(RevisionName("late@1")).experience.cold_start_s + 45
            ours, best, stops = costs(outcomes, watcher.kept[ModelName("late")], cold_cost_s)
            assert stops == 90
            assert 1.5 * best < ours <= 2 * best + 1.0 * stops

    run(main())


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("gib", "days", "every"),
    [pytest.param(ROOMY, 4, 1, id="roomy"), pytest.param(TIGHT, 1, 2, id="tight")],
)
def test_days_of_48_models(gib: int, days: float, every: int):
    live(days=days, models=48, tick_s=4, gib=gib, every=every)

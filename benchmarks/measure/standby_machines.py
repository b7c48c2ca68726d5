"""Requests to models at zero on a simulated EC2 under a policy of standby: who waits, at what cost.

The autoscaler, the reconciler, the placement, the machines' keeper and the node sessions are the
real ones; the cloud, the agents and the clients are played, in virtual time.
"""

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.measure.arrivals import Request, split
from control_plane.capacity.simulated.cloud import CloudTemper, SimulatedCloud
from control_plane.capacity.simulated.machine import MachineShape
from control_plane.fleet.node_sessions import LeaseTerms
from control_plane.fleet.patience import Patience
from infra.contracts.stage import Rung
from tests.fleet.world import LOCAL, World

MODELS = 12
_GPU = MachineShape(cpus=4, memory_bytes=16 << 30, gpus=1, gpu="l4")
# Fewer wake-ups than in production: no machine is lost here, and what ends a wait is told.
_TERMS, _PATIENCE, _TICK_S = LeaseTerms(lease_s=60.0, look_s=5.0), Patience(sweep_s=5.0), 5.0
_LOOK_S = 15.0  # machines are counted as often
_AGAIN_S = 1.0  # a client that is refused comes again


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of one of the models."""

    at: float
    model: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Policy:
    """What waits for requests: `stopped` machines, always; `most` that the decider may choose to
    keep; machines end when they have idled for `idle_s`."""

    name: str
    stopped: int = 0
    most: int = 0
    idle_s: float = 300.0


@dataclass
class Account:
    """What became of every request, and what ran for them."""

    waits_s: list[float] = field(default_factory=list)  # from request to registered node
    refused: int = 0
    seconds: float = 0.0
    running_s: float = 0.0
    stopped_s: float = 0.0

    def quantile(self, part: float, *, of_waits: bool = False) -> float:
        """So many of all requests, or of those that waited for a machine, waited so long."""
        waits = sorted(it for it in self.waits_s if it > 0 or not of_waits)
        return waits[math.ceil(part * len(waits)) - 1] if waits else 0.0

    @property
    def waited(self) -> float:
        """The share of requests that waited for a machine."""
        return sum(it > 0 for it in self.waits_s) / len(self.waits_s)


def bursts(count: int, *, gap_s: float = 600.0, more: float = 0.6, seed: int = 0) -> list[Arrival]:
    """Requests that come some at a time, of different models: Poisson, of geometric size."""
    dice = random.Random(seed)
    arrivals: list[Arrival] = []
    at = 0.0
    while len(arrivals) < count:
        at += dice.expovariate(1 / gap_s)
        models = dice.sample(range(MODELS), MODELS)
        for place, model in enumerate(models):
            if place and dice.random() >= more:
                break
            arrivals.append(Arrival(at + dice.uniform(0, 2), model, dice.expovariate(1 / 3)))
    return sorted(arrivals[:count], key=lambda arrival: arrival.at)


def on_models(requests: Sequence[Request]) -> list[Arrival]:
    """A trace as if its requests were of all the models, few of them popular."""
    parts = split(requests, MODELS)
    arrivals = [
        Arrival(request.at, model, request.seconds)
        for model, part in enumerate(parts)
        for request in part
    ]
    return sorted(arrivals, key=lambda arrival: arrival.at)


async def serve(
    arrivals: Sequence[Arrival], policy: Policy, *, temper: CloudTemper | None = None, seed: int = 0
) -> Account:
    """Sends every request under a policy; to be run in virtual time."""
    account = Account()
    cloud = SimulatedCloud(temper or CloudTemper(), seed=seed)
    async with World(
        shape=_GPU,
        most=2 * MODELS,
        terms=_TERMS,
        patience=_PATIENCE,
        tick_s=_TICK_S,
        has_standby=True,
        cloud=cloud,
        idle_s=policy.idle_s,
        standby_machines=policy.most,
    ) as world:
        await world.capacity.terminate(LOCAL)
        for number in range(MODELS):
            await world.deploy(f"m{number}", resources={"gpus": 1}, scaling={"grace": 10})
        if policy.stopped:
            await world.capacity.hold(_GPU.kind, policy.stopped)
        world.tasks.start(_watch(world, account), name="machines are counted")
        began_at = world.now()
        async with asyncio.TaskGroup() as requests:
            for arrival in arrivals:
                await asyncio.sleep(began_at + arrival.at - world.now())
                requests.create_task(_request(world, arrival, account))
        account.seconds = world.now() - began_at
        account.running_s += cloud.filled_s
    return account


async def _request(world: World, arrival: Arrival, account: Account) -> None:
    arrived_at = world.now()
    while True:
        outcome = await world.gateway.request(f"m{arrival.model}", seconds=arrival.seconds)
        if outcome.endpoint is not None:
            break
        account.refused += 1
        await asyncio.sleep(_AGAIN_S)
    node = world.fleet.node(outcome.endpoint.node_id)
    assert node is not None, "it has just answered"
    account.waits_s.append(max(0.0, node.registered_at - arrived_at))


async def _watch(world: World, account: Account) -> None:
    while True:
        await asyncio.sleep(_LOOK_S)
        for machine in world.capacity.describe():
            if machine.rung is Rung.STOPPED:
                account.stopped_s += _LOOK_S
            else:
                account.running_s += _LOOK_S

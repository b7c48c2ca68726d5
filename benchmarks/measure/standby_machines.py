"""Requests to models at zero on a simulated EC2 under a policy of standby: who waits, at what cost.

The autoscaler, the reconciler, the placement, the machines' keeper and the node sessions are the
real ones; the cloud, the agents and the clients are played, in virtual time.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.measure.arrivals import Request
from control_plane.capacity.simulated.cloud import CloudTemper, SimulatedCloud
from control_plane.capacity.simulated.machine import MachineShape
from control_plane.fleet.node_sessions import LeaseTerms
from control_plane.fleet.patience import Patience
from infra.contracts.stage import Rung
from tests.fleet.world import LOCAL, World

GPU = MachineShape(cpus=4, memory_bytes=16 << 30, gpus=1, gpu="l4")
# Fewer wake-ups than in production: no machine is lost here, and what ends a wait is told.
_TERMS, _PATIENCE, _TICK_S = LeaseTerms(lease_s=60.0, look_s=5.0), Patience(sweep_s=5.0), 5.0
_LOOK_S = 15.0  # machines are counted as often
GRACE_S = 10  # that a replica waits for requests
AGAIN_S = 1.0  # after which a client that is refused comes again


@dataclass(frozen=True, slots=True)
class Policy:
    """What waits for requests: `stopped` machines, always; `most` that the decider may choose to
    keep, stopped or idling, by what models' `cold_penalty` says a wait is worth; machines end when
    they have idled for `idle_s`."""

    name: str
    stopped: int = 0
    most: int = 0
    cold_penalty: float = 60.0  # the default of a model
    idle_s: float = 300.0


@dataclass
class Account:
    """What became of every request, and what ran for them."""

    waits_s: list[float] = field(default_factory=list)  # from request to registered node
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


async def serve(
    models: Sequence[Sequence[Request]],
    policy: Policy,
    *,
    temper: CloudTemper | None = None,
    seed: int = 0,
) -> Account:
    """Sends each model its requests under a policy; to be run in virtual time."""
    arrivals = sorted((it, model) for model, requests in enumerate(models) for it in requests)
    account = Account()
    cloud = SimulatedCloud(temper or CloudTemper(), seed=seed)
    async with World(
        shape=GPU,
        most=2 * len(models),
        terms=_TERMS,
        patience=_PATIENCE,
        tick_s=_TICK_S,
        has_standby=True,
        cloud=cloud,
        idle_s=policy.idle_s,
        standby_machines=policy.most,
    ) as world:
        await world.capacity.terminate(LOCAL)
        scaling = {"grace": GRACE_S, "cold_penalty": policy.cold_penalty}
        for number in range(len(models)):
            await world.deploy(f"m{number}", resources={"gpus": 1}, scaling=scaling)
        if policy.stopped:
            await world.capacity.hold(GPU.kind, policy.stopped)
        world.tasks.start(_watch(world, account), name="machines are counted")
        began_at = world.now()
        async with asyncio.TaskGroup() as requests:
            for request, model in arrivals:
                await asyncio.sleep(began_at + request.at - world.now())
                requests.create_task(_request(world, f"m{model}", request.seconds, account))
        account.seconds = world.now() - began_at
        account.running_s += cloud.filled_s
    return account


async def _request(world: World, model: str, seconds: float, account: Account) -> None:
    arrived_at = world.now()
    while True:
        outcome = await world.gateway.request(model, seconds=seconds)
        if outcome.endpoint is not None:
            break
        await asyncio.sleep(AGAIN_S)
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

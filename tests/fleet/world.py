# ruff: noqa: B008 - frozen values as defaults
"""The control plane's inside on simulated machines, with a gateway that only counts and waits."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Set
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from structlog.testing import capture_logs

from control_plane.autoscaler.decision import Tuning
from control_plane.autoscaler.demand import Demand, DemandMeter
from control_plane.autoscaler.experience_store import ExperienceStore, MemoryExperienceStore
from control_plane.autoscaler.explain import Explanation
from control_plane.autoscaler.loop import Autoscaler
from control_plane.autoscaler.machine_keeper import MachineKeeper
from control_plane.autoscaler.memory import Memory
from control_plane.autoscaler.tracked import Tracked
from control_plane.capacity.port import CapacityProvider
from control_plane.capacity.simulated.cloud import SimulatedCloud
from control_plane.capacity.simulated.machine import MachineShape, SimulatedMachine
from control_plane.capacity.simulated.provider import SimulatedCapacity
from control_plane.capacity.simulated.script import Climbing, Script
from control_plane.deployments.memory_store import MemoryDeploymentStore
from control_plane.deployments.resolver import KnownSources
from control_plane.deployments.service import Deployments
from control_plane.deployments.store import Change
from control_plane.fleet.census import Census, CensusStore, MemoryCensusStore
from control_plane.fleet.chronicle import Chronicle
from control_plane.fleet.crash_loop import CrashPolicy
from control_plane.fleet.logbook import Logbook
from control_plane.fleet.machines import Machines
from control_plane.fleet.node_sessions import LeaseTerms, NodeSessions
from control_plane.fleet.patience import Patience
from control_plane.fleet.reconciler import Reconciler
from control_plane.fleet.replica import Endpoint, Replica
from control_plane.fleet.state import Fleet
from control_plane.fleet.tokens import replica_tokens
from infra.clock import Clock
from infra.contracts.base import ModelName, NodeId, RevisionName
from infra.contracts.node import ClockReading, Failure
from infra.contracts.revision import ReplicaState, Revision
from infra.contracts.stage import Stage
from infra.errors import ModelNotFound, PlatformError
from infra.supervise import TaskSet
from infra.virtual_time import LoopClock, run_virtual
from tests.fleet.makers import SOURCE, a_source, a_spec, some_facts

T = TypeVar("T")

OUR_FAULTS = {
    "fleet.listener-failed",
    "task.failed",
    "autoscaler.tick-failed",
    "autoscaler.look-failed",
    "demand.unreadable",
    "machine.launch-failed",
}
LOCAL = NodeId("local")
CHAT_1 = RevisionName("chat@1")
COLD_S = 0.27  # runtime 0.02 + weights 0.2 + engine 0.05, from a parked worker
SLOW = Script(
    stages=(Climbing(Stage.RUNTIME, 1), Climbing(Stage.WEIGHTS, 20), Climbing(Stage.ENGINE, 4))
)
CRASH = Failure(code="replica-failed", detail="out of memory", is_permanent=False)
BROKEN = Failure(code="unsupported-model", detail="no such architecture", is_permanent=True)


@dataclass
class Outcome:
    """What one request got."""

    arrived_at: float
    started_at: float | None = None
    ended_at: float | None = None
    endpoint: Endpoint | None = None
    error: PlatformError | None = None
    attempts: int = 0


class Gateway:
    """Holds requests in order, gives permits, pokes at zero: the activator's contract, no HTTP."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._meters: dict[RevisionName, DemandMeter] = {}
        self._changed: set[RevisionName] = set()
        self._waiting: dict[RevisionName, deque[asyncio.Future[Endpoint]]] = {}
        self._busy: dict[str, int] = {}
        self._dying: dict[str, list[asyncio.Future[None]]] = {}
        self.is_silent = False

    def demand(self, revision: RevisionName) -> Demand | None:
        if self.is_silent:
            return None
        return self._meter(revision).read(now=self._world.now())

    def changed(self) -> Set[RevisionName]:
        changed = set(self._meters if self.is_silent else self._changed)
        self._changed.clear()
        return changed

    async def request(self, model: str = "chat", *, seconds: float = 0.1) -> Outcome:
        """One request from arrival to its end; errors are in the outcome."""
        revision = self._world.deployments.pick(ModelName(model))
        outcome = Outcome(self._world.now())
        if revision is None:
            outcome.error = ModelNotFound(model)
            return outcome
        meter, is_in_flight = self._meter(revision.name), False
        meter.arrive(now=self._world.now())
        try:
            while True:
                endpoint = await self._permit(revision.name)
                outcome.attempts += 1
                meter.dispatch(now=self._world.now())
                is_in_flight = True
                outcome.started_at, outcome.endpoint = self._world.now(), endpoint
                if await self._execute(endpoint, seconds):
                    outcome.ended_at = self._world.now()
                    return outcome
                meter.retry(now=self._world.now())
                is_in_flight = False
                if self._world.deployments.get(revision.model) is None:
                    raise ModelNotFound("deleted while it was served")
        except PlatformError as error:
            outcome.error = error
            return outcome
        finally:
            meter.leave(was_in_flight=is_in_flight, now=self._world.now())

    def meters(self) -> tuple[DemandMeter, ...]:
        return tuple(self._meters.values())

    def replica_changed(self, before: Replica | None, after: Replica) -> None:
        if after.is_over:
            for alive in self._dying.pop(after.replica_id, ()):
                alive.cancel()
        self._admit(after.revision.name)

    def deployment_changed(self, change: Change) -> None:
        for revision in tuple(self._waiting) if change.after is None else ():
            if revision.rpartition("@")[0] == change.model:
                self.failed(revision, ModelNotFound("deleted"))

    def failed(self, revision: RevisionName, error: PlatformError) -> None:
        for waiter in self._waiting.pop(revision, ()):
            if not waiter.done():
                waiter.set_exception(error)

    def _meter(self, revision: RevisionName) -> DemandMeter:
        meter = self._meters.get(revision)
        if meter is None:
            meter = DemandMeter(partial(self._changed.add, revision))
            self._meters[revision] = meter
        return meter

    async def _permit(self, revision: RevisionName) -> Endpoint:
        waiter: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(revision, deque()).append(waiter)
        self._admit(revision)
        if not self._world.fleet.ready(revision):
            self._world.autoscaler.poke(revision)
        return await waiter

    def _admit(self, revision: RevisionName) -> None:
        waiting = self._waiting.get(revision, deque())
        for endpoint in self._world.fleet.ready(revision):
            while waiting and self._busy.get(endpoint.replica_id, 0) < endpoint.max_concurrency:
                waiter = waiting.popleft()
                if not waiter.done():
                    self._busy[endpoint.replica_id] = self._busy.get(endpoint.replica_id, 0) + 1
                    waiter.set_result(endpoint)

    async def _execute(self, endpoint: Endpoint, seconds: float) -> bool:
        """True when the replica lived to the end of the request."""
        alive: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        replica = self._world.fleet.replica(endpoint.replica_id)
        try:
            if replica is None or replica.is_over:
                return False
            self._dying.setdefault(endpoint.replica_id, []).append(alive)
            done, _ = await asyncio.wait((alive,), timeout=seconds)
            return not done
        finally:
            self._busy[endpoint.replica_id] -= 1
            alive.cancel()
            self._admit(endpoint.revision)


class World:
    """Everything between a deployed spec and a READY replica, wired as main wires it."""

    def __init__(
        self,
        *,
        shape: MachineShape = MachineShape(),
        script: Script = Script(),
        most: int = 1,
        terms: LeaseTerms = LeaseTerms(),
        patience: Patience = Patience(),
        policy: CrashPolicy = CrashPolicy(),
        tuning: Tuning = Tuning(),
        capacity: CapacityProvider | None = None,
        experience: ExperienceStore | None = None,
        tick_s: float = 1.0,
        clock: Clock | None = None,
        has_standby: bool = False,
        cloud: SimulatedCloud | None = None,
        idle_s: float = 300.0,
        standby_machines: int = 0,
        census: CensusStore | None = None,
    ) -> None:
        self.clock = clock or LoopClock()
        self.tasks = TaskSet()
        self.store = MemoryDeploymentStore()
        self.sources = KnownSources({SOURCE: (a_source(), some_facts())})
        self.deployments = Deployments(self.store, self.sources)
        self.fleet = Fleet()
        self.census = Census(census or MemoryCensusStore(), self.fleet, clock=self.clock)
        self.logbook = Logbook()
        token = replica_tokens(b"secret")
        self.sessions = NodeSessions(
            self.fleet,
            clock=self.clock,
            read_clock=lambda: ClockReading(wall=self.now(), monotonic=self.now(), boot_id="v"),
            live=self.deployments.live,
            token=token,
            logbook=self.logbook,
            terms=terms,
        )
        self.capacity = SimulatedCapacity(
            self.sessions,
            clock=self.clock,
            shape=shape,
            script=lambda _: script,
            most=most,
            has_standby=has_standby,
            cloud=cloud,
        )
        self.machines = Machines(
            capacity or self.capacity,
            self.fleet,
            clock=self.clock,
            tasks=self.tasks,
            idle_s=idle_s,
        )
        self.reconciler = Reconciler(
            self.fleet,
            self.machines,
            clock=self.clock,
            token=token,
            patience=patience,
            policy=policy,
            expected=self.census.expected,
        )
        self.census.subscribe(self.reconciler.expect_less)
        self.machine_keeper = MachineKeeper(
            self.deployments,
            self.machines,
            clock=self.clock,
            most=standby_machines,
        )
        self.has_memory = experience is not None
        self.memory = Memory(experience or MemoryExperienceStore(), clock=self.clock)
        self.autoscaler = Autoscaler(
            self.deployments,
            self.fleet,
            self.reconciler,
            clock=self.clock,
            tuning=tuning,
            tick_s=tick_s,
            memory=self.memory,
        )
        self.gateway = Gateway(self)
        self.autoscaler.watch(self.gateway)
        self.fleet.subscribe(self.gateway.replica_changed)
        self.deployments.subscribe(self.gateway.deployment_changed)
        self.reconciler.subscribe_failed(self.gateway.failed)
        self.capacity.subscribe(self.sessions.heard)
        self.capacity.subscribe(self.census.heard)
        chronicle = Chronicle(self.logbook, self.clock)
        self.fleet.subscribe(chronicle.replica_changed)
        self.deployments.subscribe(chronicle.deployment_changed)
        self.history: list[tuple[float, str, ReplicaState]] = []
        self.fleet.subscribe(self._remember)

    async def __aenter__(self) -> "World":
        self._logs = ExitStack()
        self.logs = self._logs.enter_context(capture_logs())
        await self.memory.load()
        if self.has_memory:
            self.tasks.start(self.memory.run(), name="memory")
        await self.census.load()
        self.capacity.add(LOCAL)
        self.tasks.start(self.sessions.watch_leases(), name="leases")
        self.tasks.start(self.reconciler.run(), name="reconciler")
        self.tasks.start(self.autoscaler.run(), name="autoscaler")
        self.tasks.start(self.census.run(), name="census")
        self.tasks.start(self.machine_keeper.run(), name="machine standby")
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.reconciler.close()
        await self.tasks.close()
        await self.capacity.close()
        self.fleet.check_integrity()
        self._logs.close()
        assert [it for it in self.logs if it["event"] in OUR_FAULTS] == []

    def now(self) -> float:
        return self.clock.now()

    async def deploy(self, name: str = "chat", **sections: Any) -> Revision:
        return await self.deployments.deploy(a_spec(name, **sections), now=self.now())

    def request(self, model: str = "chat", *, seconds: float = 0.1) -> asyncio.Task[Outcome]:
        return self.tasks.start(self.gateway.request(model, seconds=seconds), name="request")

    def machine(self) -> SimulatedMachine:
        return self.capacity.machine(LOCAL)

    def explain(self, model: str = "chat") -> Explanation:
        explanation = self.autoscaler.explain(ModelName(model))
        assert explanation is not None
        return explanation

    def load(self, revision: str = "chat@1") -> int:
        """Requests in flight and waiting."""
        demand = self.gateway.demand(RevisionName(revision))
        return 0 if demand is None else demand.concurrency

    def tracked(self, revision: RevisionName = CHAT_1) -> Tracked:
        """What the autoscaler remembers of a revision."""
        tracked = self.autoscaler._roster.get(revision)
        assert tracked is not None
        return tracked

    def scaled(self) -> set[RevisionName]:
        """The revisions that the autoscaler knows."""
        return set(self.autoscaler._roster.names())

    def alive(self, model: str = "chat") -> list[ReplicaState]:
        return [it.state for it in self.fleet.replicas() if it.model == model]

    def started(self) -> int:
        """Replicas ever assigned."""
        return sum(state is ReplicaState.ASSIGNED for _, _, state in self.history)

    def moves(self, state: ReplicaState) -> list[float]:
        """When replicas moved to this state."""
        return [at for at, _, to in self.history if to is state]

    async def until(
        self, condition: Callable[[], object], *, seconds: float = 60, every_s: float = 0.005
    ) -> float:
        """Waits, in virtual time; returns how long."""
        began_at = self.now()
        while not condition():
            assert self.now() - began_at < seconds, f"not within {seconds} s: {condition}"
            await asyncio.sleep(every_s)
        return self.now() - began_at

    def _remember(self, before: Replica | None, after: Replica) -> None:
        if before is None or before.state is not after.state:
            self.history.append((self.now(), after.replica_id, after.state))


def run(main: Coroutine[Any, Any, T]) -> T:
    return run_virtual(main)

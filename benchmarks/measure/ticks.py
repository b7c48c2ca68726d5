"""How long the autoscaler's ticks take over a large fleet, from a take-over on."""

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from control_plane.autoscaler.demand_table import DemandTable
from control_plane.autoscaler.loop import Autoscaler
from control_plane.capacity.static import StaticCapacity
from control_plane.deployments.memory_store import MemoryDeploymentStore
from control_plane.deployments.resolver import KnownSources
from control_plane.deployments.service import Deployments
from control_plane.fleet.machines import Machines
from control_plane.fleet.node import Node
from control_plane.fleet.reconciler import Reconciler
from control_plane.fleet.replica import Replica
from control_plane.fleet.state import Fleet
from control_plane.process import settle_collector
from infra.contracts.base import NodeId, ReplicaId
from infra.contracts.node import ReplicaReport
from infra.contracts.revision import ReplicaState, Revision
from infra.contracts.stage import Rung
from infra.supervise import TaskSet
from tests.fleet.makers import SOURCE, a_registration, a_source, a_spec, some_facts

LEASE_S = 10.0
PAUSE_S = 0.05  # of `Autoscaler.run`, before it goes on with what it put off


@dataclass(frozen=True)
class FleetShape:
    """So many models, a share of which is asked for every second; each of the others idles with
    one replica, in its grace."""

    models: int
    replicas: int
    busy: float

    @property
    def asked(self) -> int:
        return int(self.models * self.busy)

    @property
    def each(self) -> int:
        """Replicas of a model that is asked for."""
        return (self.replicas - (self.models - self.asked)) // self.asked


@dataclass
class Ticks:
    """How long each tick of a phase took, with those between that catch up, and the longest time
    for which one held the loop; `late_s` is how long a decision was put off at most."""

    seconds: list[float] = field(default_factory=list)
    held_s: float = 0.0
    late_s: float = 0.0

    def quantile(self, part: float) -> float:
        """So many of them took so long at most."""
        return sorted(self.seconds)[math.ceil(part * len(self.seconds)) - 1]


class _Clock:
    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def now(self) -> float:
        return self.at


async def measure_ticks(
    shape: FleetShape, *, take_over: int = 180, steady: int = 60, burst: int = 120
) -> dict[str, Ticks]:
    """Every tick since a control plane took over a fleet that serves, by phase.

    Its nodes register again within a third of a lease, and the load of a model returns when its
    replicas are back. At last a fifth of the busy models get twice the load for twenty seconds,
    and a replica more each.
    """
    bench = _Bench(shape)
    await bench.deploy()
    settle_collector()
    phases = {
        "after a take-over": bench.tick(take_over, each_time=bench.come_back),
        "steady": bench.tick(steady),
        "a fifth needs a replica more": bench.tick(burst, each_time=bench.overload),
    }
    await bench.close()
    return phases


class _Bench:
    """A control plane's inside, whose nodes and clients are played."""

    def __init__(self, shape: FleetShape) -> None:
        self._shape = shape
        self._clock, self._tasks, self._dice = _Clock(), TaskSet(), random.Random(0)
        self._deployments = Deployments(
            MemoryDeploymentStore(), KnownSources({SOURCE: (a_source(), some_facts())})
        )
        self._fleet, self._demand = Fleet(), DemandTable(self._clock)
        self._machines = Machines(
            StaticCapacity(), self._fleet, clock=self._clock, tasks=self._tasks
        )
        self._reconciler = Reconciler(
            self._fleet, self._machines, clock=self._clock, token=lambda _: "t"
        )
        self._autoscaler = Autoscaler(
            self._deployments, self._fleet, self._reconciler, clock=self._clock
        )
        self._autoscaler.watch(self._demand)
        self._fleet.subscribe(self._start_or_end)
        self._revisions: list[Revision] = []
        self._nodes: list[tuple[float, NodeId, list[Replica]]] = []  # that are not back yet
        self._starting: list[Replica] = []
        self._draining: list[Replica] = []
        self._load_at: dict[int, float] = {}  # when a model's clients are back
        self._ticks = 0

    async def deploy(self) -> None:
        """What was deployed before is known; no node is back yet."""
        shape, began_at = self._shape, self._clock.now()
        for number in range(shape.models):
            most = shape.each + 1 if number < shape.asked else 2
            scaling = {"max": most, "target_concurrency": 8, "grace": 3600}
            spec = a_spec(f"m{number}", scaling=scaling)
            self._revisions.append(await self._deployments.deploy(spec, now=began_at))
        count = max(1, shape.replicas // 1000)
        self._nodes = [
            (began_at + self._dice.uniform(0, LEASE_S / 3), NodeId(f"n{number}"), [])
            for number in range(count)
        ]
        dealt = 0
        for number, revision in enumerate(self._revisions):
            for place in range(shape.each if number < shape.asked else 1):
                _, node_id, replicas = self._nodes[dealt % count]  # a model lies on many nodes
                replica_id = ReplicaId(f"{revision.model}-{place}")
                replicas.append(_an_adopted(replica_id, revision, node_id, began_at))
                dealt += 1
        self._load_at = {
            number: began_at + LEASE_S / 3 + self._dice.uniform(0, 5)
            for number in range(shape.asked)
        }

    def tick(self, ticks: int, *, each_time: Callable[[int], None] = lambda _: None) -> Ticks:
        """So many seconds of this life; `each_time` is told which one it is."""
        measured = Ticks()
        for number in range(ticks):
            each_time(number)
            self._serve()
            next_at = self._clock.at + self._dice.uniform(0.99, 1.01)
            measured.late_s = max(measured.late_s, self._catch_up(measured))
            self._clock.at = max(self._clock.at, next_at)
            _measure(measured, self._autoscaler.ticking(self._clock.now()))
        return measured

    def _catch_up(self, measured: Ticks) -> float:
        """Makes the decisions that the last tick put off; how long that took, with the pauses."""
        began_at = self._clock.at
        while self._autoscaler.is_behind:
            self._clock.at += PAUSE_S
            self._clock.at += _measure(measured, self._autoscaler.catching_up(self._clock.now()))
        return self._clock.at - began_at

    def come_back(self, _: int) -> None:
        """Agents find the new control plane, and tell it what they run."""
        now = self._clock.now()
        for node in [it for it in self._nodes if it[0] <= now]:
            self._nodes.remove(node)
            with self._fleet.one_change():
                registration = a_registration(node[1], memory_bytes=1 << 40)
                self._fleet.join(Node.registered(registration, version=1, lease_s=1e9, now=now))
                for replica in node[2]:
                    self._fleet.assign(replace(replica, since=now))
                    self._fleet.hear(node[1], _ready(replica), now=now)

    def overload(self, number: int) -> None:
        """Twice the load for some seconds."""
        more = self._shape.each * 8 - 4
        for model in range(self._shape.asked // 5 if number in {0, 20} else 0):
            meter = self._demand.meter(self._revisions[model].name)
            for _ in range(more):
                if number == 0:
                    meter.arrive_at_replica(now=self._clock.now())
                else:
                    meter.leave(was_in_flight=True, now=self._clock.now())

    async def close(self) -> None:
        """Nothing has changed in the end."""
        self._reconciler.close()
        await self._tasks.close()
        asked = self._shape.asked
        desired = [self._reconciler.desired(it.name) for it in self._revisions]
        assert set(desired[:asked]) == {self._shape.each} and set(desired[asked:]) <= {1}

    def _serve(self) -> None:
        """A request comes and another goes, of each model that has clients; what was started is
        ready and what drains has ended, a tick later."""
        now = self._clock.now()
        for model, back_at in self._load_at.items():
            meter = self._demand.meter(self._revisions[model].name)
            if meter.in_flight:
                meter.arrive_at_replica(now=now)
                meter.leave(was_in_flight=True, now=now)
            elif now >= back_at:
                for _ in range(self._shape.each * 8 - 4):
                    meter.arrive_at_replica(now=now)
        starting, self._starting = self._starting, []
        draining, self._draining = self._draining, []
        for replica in starting:
            self._fleet.hear(replica.node_id, _ready(replica), now=now)
        for replica in draining:
            self._fleet.hear(replica.node_id, _ready(replica, ReplicaState.STOPPED), now=now)

    def _start_or_end(self, before: Replica | None, after: Replica) -> None:
        if before is None and not after.is_adopted:
            self._starting.append(after)
        elif after.state is ReplicaState.DRAINING:
            self._draining.append(after)


def _measure(measured: Ticks, work: Iterator[None]) -> float:
    """Does it, as the loop would; how long that took."""
    began = last = time.perf_counter()
    for _ in work:
        now = time.perf_counter()
        measured.held_s, last = max(measured.held_s, now - last), now
    ended = time.perf_counter()
    measured.held_s = max(measured.held_s, ended - last)
    measured.seconds.append(ended - began)
    return ended - began


def _an_adopted(replica_id: ReplicaId, revision: Revision, node_id: NodeId, now: float) -> Replica:
    return Replica(
        replica_id=replica_id,
        revision=revision,
        node_id=node_id,
        token="t",
        wanted_at=now,
        created_at=now,
        since=now,
        is_adopted=True,
    )


def _ready(replica: Replica, state: ReplicaState = ReplicaState.READY) -> ReplicaReport:
    return ReplicaReport(
        replica_id=replica.replica_id,
        revision=replica.revision.name,
        state=state,
        from_rung=Rung.NODE,
        host="127.0.0.1",
        port=1,
    )

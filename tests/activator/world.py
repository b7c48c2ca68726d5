"""An activator with everything around it in memory, for tests under virtual time."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import orjson

from control_plane.activator.activator import Activator
from control_plane.activator.call import Call, Patience, TokenCount
from control_plane.activator.exchange import Exchange
from control_plane.activator.ledger import Ledger
from control_plane.activator.lines import Lines
from control_plane.activator.memory_client import MemoryReplicaClient, Script, Wire
from control_plane.activator.memory_downstream import MemoryDownstream
from control_plane.activator.meters import ActivatorMeters
from control_plane.activator.relay import Relay
from control_plane.activator.replica_client import ReplicaRequest
from control_plane.deployments.memory_store import MemoryDeploymentStore
from control_plane.deployments.resolver import KnownSources
from control_plane.deployments.service import Deployments
from control_plane.fleet.node import Node
from control_plane.fleet.replica import Replica
from control_plane.fleet.state import Fleet
from control_plane.fleet.timeline import MemoryTimelineStore
from infra.clock import Clock
from infra.contracts.base import ModelName, NodeId, ReplicaId, RequestId, RevisionName
from infra.contracts.model_spec import Limits, ModelSpec, Timeouts
from infra.contracts.node import ReplicaReport
from infra.contracts.revision import ModelFacts, ReplicaState, ResolvedSource, Revision
from infra.contracts.stage import ColdStartReport, Rung, Stage, StageProgress, StageTiming
from infra.contracts.tenancy import DEFAULT_TENANT, TenantName
from infra.errors import PlatformError
from infra.metrics import Metrics
from infra.supervise import TaskSet
from infra.virtual_time import LoopClock, run_virtual

NODE = NodeId("node-1")
SOURCE = "file:///models/chat"

FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    context_tokens=2048,
    vocabulary=49152,
    weight_bytes=269_000_000,
    longest_token_bytes=32,
)
RESOLVED = ResolvedSource(uri=SOURCE, digest="sha256:" + "0" * 64, files=())


def spec(name: str = "chat", *, limits: Limits | None = None, **timeouts: float) -> ModelSpec:
    return ModelSpec(
        name=ModelName(name),
        source=SOURCE,
        limits=limits or Limits(),
        timeouts=Timeouts(**timeouts),
    )


class Timelines:
    """A store of reports that takes its time, and notes how many each write brought."""

    def __init__(self) -> None:
        self.write_s = 0.0
        self.sizes: list[int] = []
        self._store = MemoryTimelineStore()
        self.cap = self._store.cap
        self.last = self._store.last
        self.find = self._store.find
        self.forget = self._store.forget

    async def append(self, model: ModelName, reports: Sequence[ColdStartReport]) -> None:
        if self.write_s:
            await asyncio.sleep(self.write_s)
        self.sizes.append(len(reports))
        await self._store.append(model, reports)


class World:
    """Deployments, a fleet with one node, replicas that are scripts, and an activator."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or LoopClock()
        self.deployments = Deployments(
            MemoryDeploymentStore(), KnownSources({SOURCE: (RESOLVED, FACTS)})
        )
        self.fleet = Fleet()
        self.wakes: list[RevisionName] = []
        self.replicas = MemoryReplicaClient()
        self.timelines = Timelines()
        self.metrics = Metrics()
        self.meters = ActivatorMeters.on(self.metrics)
        self.tasks = TaskSet()
        self.lines = Lines(self.deployments, self.fleet, clock=self.clock, wake=self.wakes.append)
        self.ledger = Ledger(self.fleet, self.timelines, self.meters, self.tasks)
        relay = Relay(self.replicas, self.lines, self.ledger, self.clock)
        self.weights: dict[TenantName, int] = {}
        self.activator = Activator(
            *(self.lines, self.fleet, self.replicas, relay, self.meters, self.clock),
            weight_of=lambda tenant: self.weights.get(tenant, 1),
        )
        self._numbers = itertools.count(1)

    # -- deployments and fleet -----------------------------------------------------------------

    async def deploy(self, wanted: ModelSpec | None = None) -> Revision:
        return await self.deployments.deploy(wanted or spec(), now=self.clock.now())

    def begin(self, revision: Revision) -> ReplicaId:
        """A replica is assigned to the node and begins to climb."""
        now = self.clock.now()
        if self.fleet.node(NODE) is None:
            self.fleet.join(
                Node(
                    NODE,
                    cpus=2,
                    memory_bytes=8 << 30,
                    gpus=(),
                    started_at=now,
                    registered_at=now,
                    lease_until=now + 1e9,
                    version=1,
                )
            )
        replica_id = ReplicaId(f"replica-{next(self._numbers)}")
        self.fleet.assign(
            Replica(
                replica_id=replica_id,
                revision=revision,
                node_id=NODE,
                token="secret",
                wanted_at=now,
                created_at=now,
                since=now,
            )
        )
        return replica_id

    def report(
        self,
        replica_id: ReplicaId,
        state: ReplicaState,
        *,
        stages: tuple[StageTiming, ...] = (),
        progress: StageProgress | None = None,
    ) -> None:
        """The node says how a replica is."""
        replica = self.fleet.replica(replica_id)
        assert replica is not None
        self.fleet.hear(
            NODE,
            ReplicaReport(
                replica_id=replica_id,
                revision=replica.revision.name,
                state=state,
                from_rung=Rung.RUNTIME,
                host="127.0.0.1",
                port=9999,
                stages=stages,
                progress=progress,
            ),
            now=self.clock.now(),
        )

    def ready(self, revision: Revision, script: Script | None = None) -> ReplicaId:
        """A replica is READY at once and does what the script says."""
        replica_id = self.begin(revision)
        self.replicas.scripts[replica_id] = script or says("hello")
        self.report(replica_id, ReplicaState.READY)
        return replica_id

    async def climb(
        self, revision: Revision, script: Script | None = None, *, seconds: float = 1.0
    ) -> ReplicaId:
        """A replica climbs through three stages of equal length to READY."""
        replica_id = self.begin(revision)
        self.replicas.scripts[replica_id] = script or says("hello")
        stages: tuple[StageTiming, ...] = ()
        for stage in (Stage.RUNTIME, Stage.WEIGHTS, Stage.ENGINE):
            started_at = self.clock.now()
            for fraction in (0.0, 0.5):
                self.report(
                    replica_id,
                    ReplicaState.STARTING,
                    stages=stages,
                    progress=StageProgress(stage=stage, fraction=fraction),
                )
                await asyncio.sleep(seconds / 6)
            took = self.clock.now() - started_at
            stages = (*stages, StageTiming(stage=stage, started_at=started_at, seconds=took))
        self.report(replica_id, ReplicaState.READY, stages=stages)
        return replica_id

    # -- requests ------------------------------------------------------------------------------

    def call(
        self,
        number: int = 1,
        *,
        body: bytes = b"{}",
        stream: bool = False,
        progress: bool = False,
        tenant: TenantName = DEFAULT_TENANT,
        priority: int = 0,
        patience: Patience | None = None,
        affinity: int | None = None,
    ) -> Call:
        return Call(
            request_id=RequestId(f"req_{number}"),
            path="/v1/chat/completions",
            body=body,
            is_streaming=stream,
            wants_progress=progress,
            arrived_at=self.clock.now(),
            tenant=tenant,
            tokens=TokenCount(),
            priority=priority,
            patience=patience or Patience(),
            affinity=affinity,
        )

    def start(self, call: Call, revision: Revision) -> "Running":
        """Begins a call."""
        return Running(self.activator, call, revision)

    async def settled(self) -> None:
        """Lets everything that can run now run."""
        for _ in range(30):
            await asyncio.sleep(0)

    async def close(self) -> None:
        await self.tasks.close()
        await self.replicas.close()

    def check(self, *revisions: Revision) -> None:
        """The invariant of every scenario's end: nothing is held, nothing runs, all is at zero."""
        self.lines.check_integrity()
        assert self.replicas.running == 0, "an exchange was never closed"
        for revision in revisions or self.deployments.all():
            demand = self.lines.demand(revision.name)
            assert (demand.in_flight, demand.waiting) == (0, 0)
            line = self.lines._lines.get(revision.name)
            if line is not None:
                assert line.backlog().waiting_bytes == 0
                for replica in self.fleet.of_revision(revision.name):
                    assert line.in_flight(replica.replica_id) == 0


class Running:
    """A call being served."""

    def __init__(self, activator: Activator, call: Call, revision: Revision) -> None:
        self.client = MemoryDownstream()
        self.revision = revision
        self.request_id = call.request_id
        self.ended = self.client.ended
        self.exchange: Exchange | None = None
        try:
            self.exchange = activator.begin(call, revision, self.client)
        except PlatformError as error:
            self.client.fail(error)

    async def result(self) -> MemoryDownstream:
        """The client with its whole answer; raises why there is none."""
        await self.ended
        assert self.client.is_finished
        return self.client

    async def error(self) -> Exception:
        """Why there is no answer."""
        try:
            await self.ended
        except Exception as error:
            return error
        raise AssertionError("it was answered")

    async def refused(self) -> PlatformError:
        error = await self.error()
        assert isinstance(error, PlatformError), error
        return error

    def leave(self) -> None:
        """The client goes away."""
        if self.exchange is not None:
            self.exchange.leave()
        self.ended.cancel()


def says(text: str, *, seconds: float = 0.0) -> Script:
    """A replica that answers with a JSON document."""

    async def script(request: ReplicaRequest, wire: Wire) -> None:
        await asyncio.sleep(seconds)
        wire.head(
            200,
            [
                (b"content-type", b"application/json"),
                (b"server-timing", b"prefill;dur=10, decode;dur=20"),
            ],
        )
        await wire.write(orjson.dumps({"text": text}))

    return script


def streams(count: int = 3, *, seconds: float = 0.1) -> Script:
    """A replica that sends a token every so often."""

    async def script(request: ReplicaRequest, wire: Wire) -> None:
        for number in range(count):
            await asyncio.sleep(seconds)
            if number == 0:
                wire.head(200, [(b"content-type", b"text/event-stream")])
            await wire.write(b"data: %d\n\n" % number)

    return script


def scenario(
    main: Callable[[World], Coroutine[Any, Any, None]],
) -> Callable[[], None]:
    """A test under virtual time, given a world; the invariant is checked when it ends."""

    def test() -> None:
        async def run() -> None:
            world = World()
            try:
                await main(world)
                await world.settled()
                world.check()
            finally:
                await world.close()

        run_virtual(run())

    test.__name__ = main.__name__
    test.__doc__ = main.__doc__
    return test

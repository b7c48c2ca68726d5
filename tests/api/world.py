"""The whole control plane in memory, its HTTP surface called over connections in memory."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import orjson

from control_plane.activator.activator import Activator
from control_plane.activator.job_bill import JobBill
from control_plane.activator.job_executor import JobExecutor
from control_plane.activator.ledger import Ledger
from control_plane.activator.lines import Lines
from control_plane.activator.memory_client import MemoryReplicaClient, Script
from control_plane.activator.meters import ActivatorMeters
from control_plane.activator.relay import Relay
from control_plane.api.app import create_edge
from control_plane.api.auth import KeyRing
from control_plane.api.services import Services
from control_plane.deployments.image_indexing import ImageIndexing
from control_plane.deployments.image_pins import ImagePins, MemoryPinStore
from control_plane.fleet.replica import Replica
from control_plane.fleet.timeline import MemoryTimelineStore
from control_plane.queue.memory_store import MemoryJobStore
from control_plane.queue.plane import JobPlane
from control_plane.queue.store import Policy
from control_plane.queue.webhook_client import MemoryWebhooks
from control_plane.queue.webhook_url import WebhookRules
from control_plane.tenancy.keys import Keys
from control_plane.tenancy.quotas import Quotas
from control_plane.tenancy.store import MemoryTenancyStore
from control_plane.tenancy.usage import MemoryUsageStore, UsageLedger
from infra.contracts.revision import ReplicaState
from infra.errors import StoreUnavailable
from infra.metrics import Metrics
from infra.objectstore.memory import MemoryObjects
from infra.virtual_time import run_virtual
from tests.activator.world import says
from tests.api.connection import Exchange, Server
from tests.fleet.world import World

WEBHOOK_SECRET = "whsec-for-tests-only"
KEEP_S = 900.0  # of jobs that are over
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}


class EdgeWorld:
    """A fleet on a simulated machine, replicas that do what `script` says, and the app."""

    def __init__(
        self, world: World, *, root_key: str | None = None, node_keys: Iterable[str] = ("node",)
    ) -> None:
        self.world = world
        self.script: Script = says("hello")
        self.replicas = MemoryReplicaClient()
        world.fleet.subscribe(self._replica_changed)
        self.metrics = Metrics()
        self.store_is_up = True
        self.check_lead: Callable[[], None] = lambda: None
        self.keys = Keys(MemoryTenancyStore(), root_key=root_key)
        self.quotas = Quotas()
        self.usage = UsageLedger(MemoryUsageStore(), clock=world.clock)
        meters = ActivatorMeters.on(self.metrics)
        self.lines = Lines(
            world.deployments, world.fleet, clock=world.clock, wake=world.autoscaler.poke
        )
        world.autoscaler.watch(self.lines)
        world.reconciler.subscribe_failed(self.lines.fail)
        self.ledger = Ledger(world.fleet, MemoryTimelineStore(), meters, world.tasks)
        relay = Relay(self.replicas, self.lines, self.ledger, world.clock)
        self.activator = Activator(
            *(self.lines, world.fleet, self.replicas, relay, meters, world.clock),
            weight_of=self.keys.weight_of,
        )
        self._wire_jobs()
        self.services = Services(
            deployments=world.deployments,
            fleet=world.fleet,
            lines=self.lines,
            activator=self.activator,
            autoscaler=world.autoscaler,
            indexing=ImageIndexing(None, ImagePins(MemoryPinStore())),
            sessions=world.sessions,
            ledger=self.ledger,
            jobs=self.jobs.jobs,
            job_counts=lambda: self.jobs.dispatcher.counts,
            check_webhook=WebhookRules(has_secret=True).check,
            check_lead=lambda: self.check_lead(),
            logbook=world.logbook,
            metrics=self.metrics,
            clock=world.clock,
            keys=self.keys,
            quotas=self.quotas,
            usage=self.usage,
            node_keys=KeyRing(node_keys),
            readiness={"store": self._check_store},
        )
        self.edge = create_edge(self.services)
        self.server = Server(self.edge)

    def _wire_jobs(self) -> None:
        world = self.world
        self.job_store = MemoryJobStore(Policy(keep_s=KEEP_S))
        self.objects = MemoryObjects()
        self.webhooks = MemoryWebhooks()
        self.jobs = JobPlane(
            self.job_store,
            self.objects,
            JobExecutor(world.deployments, self.lines, self.activator, world.clock),
            owner="local",
            clock=world.clock,
            metrics=self.metrics,
            is_leading=lambda: True,
        )
        self.jobs.bill(JobBill(self.quotas, self.usage))
        self.jobs.send_webhooks(self.webhooks, secret=WEBHOOK_SECRET)
        world.fleet.subscribe(lambda before, after: self.jobs.dispatcher.poke())

    # -- calling -------------------------------------------------------------------------------

    def start(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] = b"",
        *,
        headers: dict[str, str] | None = None,
        length: int | None = None,
        breaks_off: bool = False,
    ) -> Exchange:
        """Sends a request; several parts of a body come without a Content-Length, and without an
        end if it breaks off."""
        more = {"length": length, "breaks_off": breaks_off}
        return Exchange(self.server, method, path, body, headers or {}, **more)

    async def call(self, method: str, path: str, body: Any = b"", **more: Any) -> Exchange:
        """Sends a request and waits for the whole answer; what is not bytes is sent as JSON."""
        content = body
        if not isinstance(body, bytes):
            content = orjson.dumps(body)
            more["headers"] = {"content-type": "application/json"} | more.get("headers", {})
        exchange = self.start(method, path, content, **more)
        await exchange.done()
        return exchange

    async def chat(self, **changes: Any) -> Exchange:
        return await self.call("POST", "/v1/chat/completions", CHAT | changes)

    # -- around it -----------------------------------------------------------------------------

    def is_asleep(self) -> bool:
        """Nothing was ever started, sent or held."""
        return (
            self.world.started() == 0
            and not self.replicas.sent
            and all(self.lines.demand_of(one.model).last_active_at is None for one in self._all())
        )

    def check(self) -> None:
        """The invariant of every scenario's end: nothing held, nothing running, all at zero."""
        self.lines.check_integrity()
        assert self.replicas.running == 0
        for one in self._all():
            demand = self.lines.demand_of(one.model)
            assert (demand.in_flight, demand.waiting) == (0, 0)
        assert not any(map(self.lines.in_flight, self.world.fleet.replicas())), "permits are out"
        assert self.edge.hot.intake.held_bytes == 0, "a body is still counted"

    async def settled(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)

    def _all(self) -> Any:
        return self.world.deployments.all()

    async def _check_store(self) -> None:
        if not self.store_is_up:
            raise StoreUnavailable("the store does not answer")

    def _replica_changed(self, before: Replica | None, after: Replica) -> None:
        if after.state is ReplicaState.READY:
            self.replicas.scripts[after.replica_id] = self.script
        elif after.is_over:
            self.replicas.kill(after.replica_id)


def scenario(
    main: Callable[[EdgeWorld], Coroutine[Any, Any, None]],
) -> Callable[[], None]:
    """A test under virtual time, given a world with `chat` deployed at zero replicas."""

    def test() -> None:
        async def run() -> None:
            async with World() as world:
                edge = EdgeWorld(world)
                await world.deploy("chat")
                await edge.settled()
                await main(edge)
                await edge.settled()
                edge.check()
                await edge.replicas.close()

        run_virtual(run())

    test.__name__ = main.__name__
    test.__doc__ = main.__doc__
    return test

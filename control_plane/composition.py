"""Chooses every adapter and wires the control plane together."""

import json
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from typing import Self

import structlog

from control_plane.activator.activator import Activator
from control_plane.activator.http_client import HttpReplicaClient
from control_plane.activator.job_bill import JobBill
from control_plane.activator.job_executor import JobExecutor
from control_plane.activator.ledger import Ledger
from control_plane.activator.lines import Lines
from control_plane.activator.meters import ActivatorMeters
from control_plane.activator.relay import Relay
from control_plane.activator.succession import Succession
from control_plane.api.auth import KeyRing
from control_plane.api.gauges import drop_counts_of_the_deleted
from control_plane.api.services import Services
from control_plane.autoscaler.loop import Autoscaler
from control_plane.autoscaler.machine_keeper import MachineKeeper
from control_plane.autoscaler.memory import Memory
from control_plane.autoscaler.redis_store import RedisExperienceStore
from control_plane.capacity.ec2.build import ec2_capacity
from control_plane.capacity.local import LocalAgent, LocalCapacity
from control_plane.capacity.port import CapacityProvider
from control_plane.capacity.static import StaticCapacity
from control_plane.deployments.image_indexing import ImageIndexing
from control_plane.deployments.image_pins import ImagePins
from control_plane.deployments.image_registries import RegistryImages
from control_plane.deployments.index_program import IndexProgram
from control_plane.deployments.redis_pins import RedisPinStore
from control_plane.deployments.redis_store import RedisDeploymentStore
from control_plane.deployments.service import Deployments
from control_plane.fleet.census import Census
from control_plane.fleet.chronicle import Chronicle
from control_plane.fleet.leases import Leader, LeaderLease, MemoryLeaderLease
from control_plane.fleet.logbook import Logbook
from control_plane.fleet.machines import Machines
from control_plane.fleet.node_sessions import NodeSessions
from control_plane.fleet.reconciler import Reconciler
from control_plane.fleet.redis_census import RedisCensusStore
from control_plane.fleet.redis_store import RedisLeaderLease, RedisTimelineStore
from control_plane.fleet.standby import StandbyLimits
from control_plane.fleet.state import Fleet
from control_plane.fleet.tokens import replica_tokens
from control_plane.queue.http_webhooks import HttpWebhooks
from control_plane.queue.plane import JobPlane
from control_plane.queue.redis_store import RedisJobStore, job_function
from control_plane.queue.store import Policy
from control_plane.queue.webhook_url import WebhookRules
from control_plane.settings import Settings
from control_plane.tenancy.keys import Keys
from control_plane.tenancy.quotas import Quotas
from control_plane.tenancy.redis_store import RedisTenancyStore, RedisUsageStore
from control_plane.tenancy.usage import UsageLedger
from infra.clock import SystemClock
from infra.errors import Conflict, StoreUnavailable
from infra.loopback import is_loopback
from infra.metrics import Metrics
from infra.objectstore.folder import FolderObjects
from infra.objectstore.port import ObjectStore
from infra.objectstore.s3 import S3Objects
from infra.redis import Connection, EmbeddedRedis, connect, durability_doubt, store_errors
from infra.registry.reach import Reach
from infra.sources.sources import Sources, ThreadedResolver
from infra.supervise import TaskSet

log = structlog.get_logger()


class ControlPlane:
    """Everything between the HTTP edge and the machines, as one async context.

    `url` is where the API answers for agents on this machine.
    """

    def __init__(self, settings: Settings, *, url: str, environment: Mapping[str, str]) -> None:
        self.settings = settings
        self.url = url
        self.clock = SystemClock.start()
        self.node_token = _secret(settings)
        self._environment = environment
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self.redis = await self._connect_redis(stack)
            self._wire()
            stack.push_async_callback(self.job_function.close)
            stack.push_async_callback(self.tasks.close)
            stack.callback(self.reconciler.close)
            stack.push_async_callback(self.replicas.close)
            stack.push_async_callback(self._write_what_is_left)
            stack.push_async_callback(self.retire)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def start(self) -> None:
        """Takes the lead, loads what is deployed and brings up this machine's node."""
        await self.leader.try_once()
        await self.keys.refresh()
        self._refuse_strangers()
        await self.memory.load()
        await self.succession.begin()
        self.memory.forget_all_but({one.model for one in self.deployments.all()})
        await self._warn_of_loss()
        for name, loop in (
            ("leader", self.leader.run()),
            ("leases", self.sessions.watch_leases()),
            ("reconciler", self.reconciler.run()),
            ("autoscaler", self.autoscaler.run()),
            ("machine standby", self.machine_keeper.run()),
            ("keys", self.keys.run()),
            ("memory", self.memory.run()),
            ("census", self.census.run()),
            ("usage", self.usage.run()),
            ("indexing", self.indexing.run()),
            ("metrics", drop_counts_of_the_deleted(self.metrics, self.deployments)),
            *self.jobs.loops(),
        ):
            self.tasks.start(loop, name=name)
        await self.capacity.open()

    def _refuse_strangers(self) -> None:
        """Raises Conflict where other machines could reach a platform that asks for no key."""
        host = self.settings.host
        if not (self.keys.asks_for_keys or is_loopback(host)):
            raise Conflict(
                f"there is no API key, and anybody who reaches {host} could call",
                hint="set PLATFORM_API_KEY, or make an admin's key while listening on 127.0.0.1",
            )

    async def retire(self) -> None:
        """Ends this machine's node, and lets the agents of others go."""
        await self.capacity.close()
        self.sessions.close()

    def services(self) -> Services:
        """What the HTTP edge stands on."""
        return Services(
            deployments=self.deployments,
            fleet=self.fleet,
            lines=self.lines,
            activator=self.activator,
            autoscaler=self.autoscaler,
            indexing=self.indexing,
            sessions=self.sessions,
            ledger=self.ledger,
            jobs=self.jobs.jobs,
            job_counts=lambda: self.jobs.dispatcher.counts,
            check_webhook=self.webhook_rules.check,
            check_lead=self.succession.check,
            logbook=self.logbook,
            metrics=self.metrics,
            clock=self.clock,
            keys=self.keys,
            quotas=self.quotas,
            usage=self.usage,
            node_keys=KeyRing((self.node_token,)),
            readiness={"store": self._store_answers, "leader": self._leads},
        )

    async def _write_what_is_left(self) -> None:
        await self.ledger.settle()
        with suppress(StoreUnavailable):
            await self.usage.write()
            await self.memory.write()
            await self.census.write()

    async def _store_answers(self) -> None:
        with store_errors():
            await self.redis.ping()

    def _is_in_charge(self) -> bool:
        return self.succession.is_in_charge()

    async def _leads(self) -> None:
        self.succession.check()

    async def _warn_of_loss(self) -> None:
        """An external Redis is somebody else's to configure; a 202 promises more than most do."""
        if self.settings.redis_durable:
            return
        with store_errors():
            doubt = await durability_doubt(self.redis)
        if doubt is not None:
            log.error("jobs.not-durable", why=doubt, hint="appendonly yes, appendfsync always")

    async def _connect_redis(self, stack: AsyncExitStack) -> Connection:
        url = self.settings.redis_url
        if url is None:
            folder = self.settings.state_dir / "redis"
            url = (await stack.enter_async_context(EmbeddedRedis(folder))).url
        self.redis_url = url
        redis = connect(url)
        stack.push_async_callback(redis.aclose)
        return redis

    def _wire(self) -> None:
        """Listeners hear of a change in the order in which they are made here."""
        clock, token = self.clock, replica_tokens(self.node_token.encode())
        self.tasks, self.metrics, self.logbook = TaskSet(), Metrics(), Logbook()
        self.keys = Keys(RedisTenancyStore(self.redis), root_key=_root_key(self.settings))
        self.quotas = Quotas()
        self.usage = UsageLedger(RedisUsageStore(self.redis), clock=clock)
        self.leader = Leader(self._lease(), secrets.token_hex(8), clock=clock)
        plain_http, image_sources = self.settings.plain_http, self.settings.image_sources
        reach = Reach(
            plain_http | (image_sources or frozenset()),
            may_be_private=lambda: not self.keys.asks_for_keys,
        )
        self.deployments = Deployments(
            RedisDeploymentStore(self.redis),
            ThreadedResolver(Sources(plain_http=plain_http, reach=reach)),
            RegistryImages(
                self.settings.image,
                allowed=image_sources,
                reach=reach,
                plain_http=plain_http,
            ),
        )
        self.pins = ImagePins(RedisPinStore(self.redis))
        self.deployments.load_before(self.pins.load)
        self.indexing = self._indexing()
        self.deployments.subscribe_pinned(self.indexing.pinned)
        self.deployments.subscribe(self.indexing.deployment_changed)
        self.memory = Memory(RedisExperienceStore(self.redis), clock=clock)
        self.fleet = Fleet(index_of=self.pins.of)
        self.census = Census(
            *(RedisCensusStore(self.redis), self.fleet), clock=clock, is_leading=self._is_in_charge
        )
        self.sessions = NodeSessions(
            self.fleet,
            clock=clock,
            read_clock=clock.reading,
            live=self.deployments.live,
            token=token,
            logbook=self.logbook,
        )
        self.capacity = self._capacity()
        self.capacity.subscribe(self.sessions.heard)
        self.capacity.subscribe(self.census.heard)
        machines = Machines(
            *(self.capacity, self.fleet),
            clock=clock,
            tasks=self.tasks,
            is_leading=self._is_in_charge,
        )
        self.machine_keeper = MachineKeeper(
            *(self.deployments, machines),
            clock=clock,
            most=self.settings.standby_machines_max,
            is_leading=self._is_in_charge,
        )
        self.reconciler = Reconciler(
            *(self.fleet, machines), clock=clock, token=token, expected=self.census.expected
        )
        self.census.subscribe(self.reconciler.expect_less)
        self.autoscaler = Autoscaler(
            self.deployments,
            self.fleet,
            self.reconciler,
            clock=clock,
            is_leading=self._is_in_charge,
            memory=self.memory,
            is_settled=self.indexing.is_settled,
            standby=StandbyLimits(
                self.settings.standby_max,
                self.settings.sleepers_max,
                self.settings.sleepers_memory,
            ),
        )
        self.indexing.subscribe(self.autoscaler.image_settled)
        self._wire_activator()
        self._wire_jobs()
        chronicle = Chronicle(self.logbook, clock)
        self.fleet.subscribe(chronicle.replica_changed)
        self.fleet.subscribe_nodes(chronicle.node_changed)
        self.deployments.subscribe(chronicle.deployment_changed)

    def _wire_activator(self) -> None:
        lines = Lines(self.deployments, self.fleet, clock=self.clock, wake=self.autoscaler.poke)
        self.autoscaler.watch(lines)
        self.reconciler.subscribe_failed(lines.fail)
        meters = ActivatorMeters.on(self.metrics)
        replicas = self.replicas = HttpReplicaClient()
        timelines = RedisTimelineStore(self.redis)
        self.ledger = Ledger(self.fleet, timelines, meters, self.tasks)
        relay = Relay(replicas, lines, self.ledger, self.clock)
        self.lines = lines
        self.succession = Succession(
            self.leader, self.deployments, lines, self.autoscaler, self.census, self.tasks
        )
        self.activator = Activator(
            *(lines, self.fleet, replicas, relay, meters, self.clock),
            weight_of=self.keys.weight_of,
        )

    def _wire_jobs(self) -> None:
        settings = self.settings
        policy = Policy(
            keep_s=settings.jobs_keep_s,
            keep_dead_s=settings.jobs_keep_dead_s,
            most_bytes=settings.jobs_max_bytes,
        )
        self.job_function = job_function(self.redis_url, policy)
        self.jobs = JobPlane(
            RedisJobStore(self.job_function, policy),
            self._objects(),
            JobExecutor(self.deployments, self.lines, self.activator, self.clock),
            owner=self._job_owner(),
            clock=self.clock,
            metrics=self.metrics,
            is_leading=self._is_in_charge,
        )
        self.jobs.bill(JobBill(self.quotas, self.usage))
        self.fleet.subscribe(lambda before, after: self.jobs.dispatcher.poke())
        secret = settings.webhook_secret
        self.webhook_rules = WebhookRules(
            has_secret=secret is not None, allows_private=settings.webhook_private
        )
        if secret is not None:
            client = HttpWebhooks(allows_private=settings.webhook_private)
            self.jobs.send_webhooks(client, secret=secret.get_secret_value())

    def _indexing(self) -> ImageIndexing:
        settings = self.settings
        indexer = None
        if settings.indexes_images:
            scratch = settings.state_dir / "indexing"
            indexer = IndexProgram(self._environment, scratch, plain_http=settings.plain_http)
        return ImageIndexing(indexer, self.pins, is_leading=self._is_in_charge)

    def _job_owner(self) -> str:
        """With the embedded Redis there is one owner at a time: what the last one ran when it
        died is taken up at once. Elsewhere its leases have to end."""
        return "local" if self.settings.redis_url is None else secrets.token_hex(8)

    def _objects(self) -> ObjectStore:
        url = self.settings.results_url
        if url is None:
            return FolderObjects(self.settings.state_dir / "results")
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        return S3Objects(bucket, prefix)

    def _lease(self) -> LeaderLease:
        """The embedded Redis is locked to one platform, so its lease needs no second keeper."""
        if self.settings.redis_url is None:
            return MemoryLeaderLease(self.clock)
        return RedisLeaderLease(self.redis)

    def _capacity(self) -> CapacityProvider:
        settings = self.settings
        if settings.capacity in {"static", "none"}:
            return StaticCapacity()
        if settings.ec2_deployment is not None and settings.capacity == "ec2":
            return ec2_capacity(
                settings.ec2_deployment,
                clock=self.clock,
                queue_url=settings.ec2_queue_url,
                is_leading=self._is_in_charge,
            )
        agent = LocalAgent(
            control_plane_url=self.url,
            token=self.node_token,
            state_dir=settings.state_dir / "node",
            environment=self._environment,
            log_level=settings.log_level,
            log_format=settings.log_format,
            runtime=_of_agent(settings),
        )
        return LocalCapacity(agent, clock=self.clock)


def _root_key(settings: Settings) -> str | None:
    return None if settings.api_key is None else settings.api_key.get_secret_value()


def _of_agent(settings: Settings) -> dict[str, str]:
    """What our own agent's workers run as and read from, in the agent's own settings."""
    told: dict[str, object] = {
        "WEIGHTS_SOCKET": settings.weights_socket,
        "PLAIN_HTTP": json.dumps(sorted(settings.plain_http)),
    }
    if settings.runtime == "container":
        told |= {
            "RUNTIME": settings.runtime,
            "IMAGE": settings.image,
            "CONTAINERD": settings.containerd,
            "CONTAINERD_NAMESPACE": settings.containerd_namespace,
            "SNAPSHOTTER": settings.snapshotter,
            "PULL_SOCKET": settings.pull_socket,
        }
    return {
        f"PLATFORM_NODE_{name}": str(value) for name, value in told.items() if value is not None
    }


def _secret(settings: Settings) -> str:
    """The node agents' key: the one that was set, or a fresh one for our own agent."""
    token = settings.node_token
    return secrets.token_urlsafe(32) if token is None else token.get_secret_value()

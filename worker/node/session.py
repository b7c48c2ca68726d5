"""The node's dialogue with the control plane: registers, watches, reports, renews its lease."""

import asyncio
from dataclasses import dataclass

import structlog

from infra.backoff import Backoff
from infra.contracts.base import NodeId
from infra.contracts.node import Leaving, NodeLease, NodeRegistration, NodeReport, Runtime
from worker.node.agent import Agent
from worker.node.clock import NodeClock
from worker.node.control_plane import ControlPlane, UnknownNode, Unreachable
from worker.node.logs import ReplicaLogs
from worker.node.tables import Urgency

log = structlog.get_logger()

WATCH_S = 20.0  # one long poll
BATCH_S = 0.005  # news that nobody waits for is collected for so long
LOG_POLL_S = 0.2
MOST_LINES = 500  # of log, in one report
MOST_DELIVERIES = 8  # reports under way at once
FAREWELL_S = 0.5  # for the last report
REDIAL = Backoff(first_s=0.05, most_s=2.0)


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node says of itself; its agent began at `began_s` of CLOCK_MONOTONIC.

    `host` is where its replicas listen; None: where the control plane is reached from. `asked_at`
    is when its cloud was asked for the machine, in unix seconds.
    """

    node_id: NodeId
    cpus: int
    memory_bytes: int
    began_s: float
    runtime: Runtime = "process"
    host: str | None = None
    asked_at: float | None = None


class Session:
    """Keeps one node known to the control plane for as long as `run` runs."""

    def __init__(
        self,
        control_plane: ControlPlane,
        agent: Agent,
        logs: ReplicaLogs,
        clock: NodeClock,
        facts: NodeFacts,
    ) -> None:
        self._control_plane = control_plane
        self._agent = agent
        self._logs = logs
        self._clock = clock
        self._facts = facts
        self.is_registered = False
        self._leaving: Leaving | None = None
        self._news = asyncio.Event()
        self._urgent = asyncio.Event()
        agent.subscribe(self._heard_news)

    async def run(self) -> None:
        """Registers again whenever the control plane lost sight of the node; never ends itself."""
        failures = 0
        while True:
            try:
                lease = await self._register()
                failures = 0
                await self._attend(lease)
            except* UnknownNode:
                log.info("node.unknown", node=self._facts.node_id)
            except* Unreachable as errors:
                log.warning("control-plane.unreachable", why=_first(errors))
            except* Exception:
                log.exception("node.session-failed")
            self.is_registered = False
            failures += 1
            await asyncio.sleep(REDIAL.delay_s(failures))

    def announce(self, leaving: Leaving | None) -> None:
        """Tells the control plane that the machine will be taken away, or no longer will be."""
        if leaving != self._leaving:
            self._leaving = leaving
            self._heard_news("now")

    async def say_goodbye(self) -> None:
        """Says that the node is gone, and what is left to say, if that is heard soon.

        Not of a node that this session did not register: it may be another machine's.
        """
        if not self.is_registered:
            return
        self.is_registered = False
        try:
            async with asyncio.timeout(FAREWELL_S):
                await self._deliver(is_renewal=False, is_leaving=True)
        except (TimeoutError, UnknownNode, Unreachable):
            log.info("node.unheard", node=self._facts.node_id)

    async def _register(self) -> NodeLease:
        sent = self._clock.reading()
        lease = await self._control_plane.register(
            NodeRegistration(
                node_id=self._facts.node_id,
                host=self._facts.host,
                cpus=self._facts.cpus,
                memory_bytes=self._facts.memory_bytes,
                gpus=self._agent.gpus(),
                clock=sent,
                started_at=sent.wall - (sent.monotonic - self._facts.began_s),
                asked_at=self._facts.asked_at,
                runtime=self._facts.runtime,
                replicas=self._agent.reports(),
            )
        )
        self._clock.follow(lease.clock, sent=sent, received=self._clock.reading())
        if (host := self._facts.host or self._control_plane.address) is not None:
            self._agent.serve_at(host)
        self.is_registered = True
        log.info("node.registered", node=lease.node_id, lease_s=lease.lease_s)
        self._heard_news("soon")
        return lease

    async def _attend(self, lease: NodeLease) -> None:
        """Until the first error of any of the three."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name="node.watch")
            tasks.create_task(self._report(lease.lease_s / 3), name="node.report")
            tasks.create_task(self._collect_logs(), name="node.logs")

    async def _watch(self) -> None:
        desired = await self._control_plane.desired(self._facts.node_id, after=0, wait_s=0)
        while True:
            self._agent.apply(desired)
            desired = await self._control_plane.desired(
                self._facts.node_id, after=desired.version, wait_s=WATCH_S
            )

    async def _report(self, renewal_s: float) -> None:
        deliveries_left = asyncio.Semaphore(MOST_DELIVERIES)
        async with asyncio.TaskGroup() as deliveries:
            while True:
                is_renewal = not await _heard(self._news, renewal_s)
                if not is_renewal:
                    await _heard(self._urgent, BATCH_S)
                await deliveries_left.acquire()
                self._news.clear()
                self._urgent.clear()
                delivery = deliveries.create_task(self._deliver(is_renewal=is_renewal))
                delivery.add_done_callback(lambda _: deliveries_left.release())

    async def _deliver(self, *, is_renewal: bool, is_leaving: bool = False) -> None:
        changes = self._agent.reports() if is_renewal else self._agent.take_changes()
        gpus = self._agent.gpus() if is_renewal else self._agent.take_gpu_changes()
        lines = self._logs.take(MOST_LINES)
        sent = self._clock.reading()
        try:
            remote = await self._control_plane.report(
                NodeReport(
                    node_id=self._facts.node_id,
                    standby_ready=self._agent.standby_ready(),
                    pools_ready=self._agent.pools_ready(),
                    clock_uncertainty_s=self._clock.uncertainty_s,
                    sleepers=self._agent.sleepers(),
                    gpus=gpus,
                    replicas=changes,
                    logs=lines,
                    leaving=self._leaving,
                    is_leaving=is_leaving,
                )
            )
        except BaseException:  # cancelled too: the registration repeats replicas, not lines
            self._logs.give_back(lines)
            raise
        self._clock.compare(remote, sent=sent, received=self._clock.reading())

    async def _collect_logs(self) -> None:
        while True:
            if self._logs.poll():
                self._heard_news("soon")
            await asyncio.sleep(LOG_POLL_S)

    def _heard_news(self, urgency: Urgency) -> None:
        self._news.set()
        if urgency == "now":
            self._urgent.set()


async def _heard(event: asyncio.Event, within_s: float) -> bool:
    """Waits for the event; whether it came in time."""
    if event.is_set():
        return True
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _first(errors: BaseExceptionGroup[BaseException]) -> str:
    """The first error of the group, however deep."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)

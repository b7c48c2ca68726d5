"""Machines on their way for replicas that found no room, and those nobody needs any more."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from control_plane.capacity.port import CapacityProvider, Machine, Need
from control_plane.fleet.node import Node
from control_plane.fleet.state import Fleet
from infra.backoff import Backoff
from infra.clock import Clock
from infra.contracts.base import NodeId, RevisionName
from infra.errors import NoCapacity, PlatformError
from infra.supervise import TaskSet

log = structlog.get_logger()

RefusedListener = Callable[[RevisionName], None]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The provider had no machine for a revision; it is asked again at `retry_at`."""

    error: PlatformError
    times: int
    retry_at: float


class Machines:
    """Asks the provider for machines, at most one a replica that waits for room.

    A machine counts as on its way from the wish for it until its node registers or the provider
    no longer knows it.
    """

    def __init__(
        self,
        capacity: CapacityProvider,
        fleet: Fleet,
        *,
        clock: Clock,
        tasks: TaskSet,
        idle_s: float = 300.0,
        ask_again: Backoff = Backoff(first_s=1.0, most_s=30.0),  # noqa: B008 - frozen value
    ) -> None:
        self._capacity = capacity
        self._fleet = fleet
        self._clock = clock
        self._tasks = tasks
        self._idle_s = idle_s
        self._ask_again = ask_again
        self._refusals: dict[RevisionName, Refusal] = {}
        self._pending: dict[NodeId, RevisionName] = {}
        self._launching: set[NodeId] = set()
        self._empty_since: dict[NodeId, float] = {}
        self._left_at: dict[NodeId, float] = {}
        self._ending: set[NodeId] = set()
        self._refused: list[RefusedListener] = []
        fleet.subscribe_nodes(self._node_changed)

    def subscribe_refused(self, listener: RefusedListener) -> None:
        """Calls back when the provider has no machine for a revision."""
        self._refused.append(listener)

    def refusal(self, owner: RevisionName) -> Refusal | None:
        """The provider's last word, if it was no."""
        return self._refusals.get(owner)

    def are_coming(self) -> bool:
        """Whether a node may be expected to register soon."""
        now = self._clock.now()
        return bool(self._launching) or any(
            self._fleet.node(machine.node_id) is None
            and self._absent_s(machine, now) < machine.boot_s
            for machine in self._capacity.describe()
        )

    def forget(self, owner: RevisionName) -> None:
        """Drops what is remembered of a revision that is gone."""
        self._refusals.pop(owner, None)

    def want(self, owner: RevisionName, need: Need, count: int) -> None:
        """`count` replicas of a revision found no room; what is on its way for it counts.

        After a refusal the provider is left alone for a while.
        """
        refusal = self._refusals.get(owner)
        if refusal is not None and self._clock.now() < refusal.retry_at:
            return
        on_their_way = sum(revision == owner for revision in self._pending.values())
        for _ in range(count - on_their_way):
            node_id = NodeId(f"node-{secrets.token_hex(4)}")
            self._pending[node_id] = owner
            self._launching.add(node_id)
            self._tasks.start(self._launch(owner, node_id, need), name=f"launch {node_id}")

    def sweep(self, now: float) -> None:
        """Forgets launches that came to nothing; ends elastic machines that nobody needs or that
        never became, or no longer are, a node.
        """
        machines = {machine.node_id: machine for machine in self._capacity.describe()}
        for node_id, owner in tuple(self._pending.items()):
            if node_id not in machines and node_id not in self._launching:
                self._refuse(node_id, owner, NoCapacity(f"machine {node_id} did not start"))
        for machine in machines.values():
            if machine.is_elastic:
                self._end_if_useless(machine, now)
        for forgotten in self._empty_since.keys() - machines.keys():
            del self._empty_since[forgotten]
        for forgotten in self._left_at.keys() - machines.keys():
            del self._left_at[forgotten]

    def _end_if_useless(self, machine: Machine, now: float) -> None:
        node_id = machine.node_id
        if self._fleet.node(node_id) is None:
            if self._absent_s(machine, now) >= machine.boot_s:
                self._end(node_id, f"is no node after {machine.boot_s:g} s")
        elif not self._fleet.is_empty(node_id):
            self._empty_since.pop(node_id, None)
        elif now - self._empty_since.setdefault(node_id, now) >= self._idle_s:
            self._fleet.leave(node_id, now=now, detail="idle")
            self._end(node_id, f"idle for {self._idle_s:g} s")

    def _end(self, node_id: NodeId, reason: str) -> None:
        if node_id in self._ending:
            return
        log.info("machine.ended", node=node_id, reason=reason)
        self._ending.add(node_id)
        self._tasks.start(self._terminate(node_id), name=f"terminate {node_id}")

    async def _terminate(self, node_id: NodeId) -> None:
        try:
            await self._capacity.terminate(node_id)
        finally:
            self._ending.discard(node_id)

    def _absent_s(self, machine: Machine, now: float) -> float:
        """How long a machine without a node has had to become one."""
        return now - max(machine.launched_at, self._left_at.get(machine.node_id, 0.0))

    async def _launch(self, owner: RevisionName, node_id: NodeId, need: Need) -> None:
        try:
            await self._capacity.launch(node_id, need)
            self._refusals.pop(owner, None)
        except PlatformError as error:
            self._refuse(node_id, owner, error)
        except Exception as error:  # a provider's own failure must not leave the request pending
            log.exception("machine.launch-failed", node=node_id)
            self._refuse(node_id, owner, NoCapacity(f"a machine could not be started: {error}"))
        finally:
            self._launching.discard(node_id)

    def _refuse(self, node_id: NodeId, owner: RevisionName, error: PlatformError) -> None:
        if self._pending.pop(node_id, None) is None:
            return
        before = self._refusals.get(owner)
        times = 1 if before is None else before.times + 1
        retry_at = self._clock.now() + self._ask_again.delay_s(times)
        self._refusals[owner] = Refusal(error, times, retry_at)
        for listener in self._refused:
            listener(owner)

    def _node_changed(self, before: Node | None, after: Node | None) -> None:
        if before is None and after is not None:
            self._pending.pop(after.node_id, None)
            self._refusals.clear()
        elif before is not None and after is None:
            self._left_at[before.node_id] = self._clock.now()

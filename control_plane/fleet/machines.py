"""Machines on their way for replicas that found no room, and those nobody needs any more."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from control_plane.capacity.port import (
    CapacityProvider,
    LaunchToken,
    Machine,
    MachineKind,
    Need,
)
from control_plane.fleet.node import Node
from control_plane.fleet.state import Fleet
from infra.backoff import Backoff
from infra.clock import Clock
from infra.contracts.base import NodeId, RevisionName
from infra.contracts.stage import Rung
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


@dataclass(frozen=True, slots=True)
class Arrival:
    """A machine that a revision wished for is a node, `seconds` after the wish; it came from
    standby, idled as it should (`was_idle`), or was launched."""

    owner: RevisionName
    kind: MachineKind
    wished_at: float
    seconds: float
    was_stopped: bool
    was_idle: bool = False


ArrivalListener = Callable[[Arrival], None]


@dataclass(frozen=True, slots=True)
class _Wish:
    """One machine that was asked for; `node_id` once the provider has told it. `is_claimed` while
    its owner has found no other room."""

    owner: RevisionName
    at: float
    node_id: NodeId | None = None
    was_stopped: bool = False
    is_claimed: bool = True


class Machines:
    """Asks the provider for machines, at most one a replica that waits for room.

    A machine counts as on its way from the wish for it until its node registers or the provider
    no longer knows it. One from standby comes first. Who does not lead leaves all machines alone,
    and who begins to gives each of them the time of a boot to register here.
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
        is_leading: Callable[[], bool] = lambda: True,
    ) -> None:
        self._capacity = capacity
        self._fleet = fleet
        self._clock = clock
        self._tasks = tasks
        self._idle_s = idle_s
        self._ask_again = ask_again
        self._refusals: dict[RevisionName, Refusal] = {}
        self._is_leading = is_leading
        self._leads_since: float | None = None
        self._pending: dict[LaunchToken, _Wish] = {}
        self._empty_since: dict[NodeId, float] = {}
        self._left_at: dict[NodeId, float] = {}
        self._answered_at: dict[NodeId, float] = {}
        self._ending: set[NodeId] = set()
        self._held: dict[MachineKind, int] = {}
        self._may_idle: dict[MachineKind, int] = {}
        self._refused: list[RefusedListener] = []
        self._arrived: list[ArrivalListener] = []
        fleet.subscribe_nodes(self._node_changed)

    def subscribe_refused(self, listener: RefusedListener) -> None:
        """Calls back when the provider has no machine for a revision."""
        self._refused.append(listener)

    def subscribe_arrived(self, listener: ArrivalListener) -> None:
        """Calls back when a machine that was wished for has become a node."""
        self._arrived.append(listener)

    def refusal(self, owner: RevisionName) -> Refusal | None:
        """The provider's last word, if it was no."""
        return self._refusals.get(owner)

    def answered_at(self, node_id: NodeId) -> float | None:
        """When the provider had a machine on its way, in unix seconds; None where nobody here asked
        for it."""
        return self._answered_at.get(node_id)

    def are_coming(self) -> bool:
        """Whether a node may be expected to register soon."""
        return bool(self._asked()) or bool(self._coming(self._clock.now()))

    async def hold(self, kind: MachineKind, stopped: int) -> None:
        """Keeps so many machines of a kind in standby. Raises what the provider raises."""
        await self._capacity.hold(kind, stopped)
        self._held[kind] = stopped

    def held(self, kind: MachineKind) -> int:
        """How many of a kind should wait in standby."""
        return self._held.get(kind, 0)

    def let_idle(self, kind: MachineKind, count: int) -> None:
        """So many machines of a kind may idle for as long as nobody needs them."""
        self._may_idle[kind] = count

    def forget(self, owner: RevisionName) -> None:
        """Drops what is remembered of a revision that is gone."""
        self._refusals.pop(owner, None)

    def found_room(self, owner: RevisionName) -> None:
        """All replicas of a revision have room: what comes for it is for whoever waits next."""
        for token, wish in self._pending.items():
            if wish.owner == owner:
                self._pending[token] = replace(wish, is_claimed=False)

    def want(self, owner: RevisionName, need: Need, count: int) -> None:
        """`count` replicas of a revision found no room; what is on its way for it counts.

        After a refusal the provider is left alone for a while.
        """
        refusal = self._refusals.get(owner)
        if refusal is not None and self._clock.now() < refusal.retry_at:
            return
        for _ in range(count - self._on_their_way(owner, need)):
            token = LaunchToken(f"wish-{secrets.token_hex(8)}")
            self._pending[token] = _Wish(owner, self._clock.now())
            self._tasks.start(self._launch(token, need), name=f"launch for {owner}")

    def sweep(self, now: float) -> None:
        """Forgets launches that came to nothing; ends elastic machines that nobody needs or that
        never became, or no longer are, a node.
        """
        if not self._is_leading():
            self._leads_since = None
            return
        if self._leads_since is None:
            self._leads_since = now
        running = {machine.node_id: machine for machine in self._running()}
        for token, wish in tuple(self._pending.items()):
            if wish.node_id is not None and wish.node_id not in running:
                log.warning("machine.not-started", node=wish.node_id)
                self._refuse(token, NoCapacity("a machine did not start"))
        for machine in running.values():
            if machine.is_elastic:
                self._end_if_useless(machine, now)
        for at in (self._empty_since, self._left_at, self._answered_at):
            for forgotten in at.keys() - running.keys():
                del at[forgotten]

    def _asked(self) -> list[_Wish]:
        """Wishes that the provider has not answered yet."""
        return [wish for wish in self._pending.values() if wish.node_id is None]

    def _running(self) -> list[Machine]:
        return [it for it in self._capacity.describe() if it.rung is not Rung.STOPPED]

    def _coming(self, now: float) -> list[Machine]:
        """Machines that may still become a node."""
        return [
            machine
            for machine in self._running()
            if self._fleet.node(machine.node_id) is None
            and machine.node_id not in self._ending
            and self._absent_s(machine, now) < machine.boot_s
        ]

    def _on_their_way(self, owner: RevisionName, need: Need) -> int:
        """What a revision has asked for, and what comes for nobody who waits: its owner has
        found room, or a control plane before us asked for it. A node that fell silent is not waited
        for: its replicas are wanted now."""
        claimed = [wish for wish in self._pending.values() if wish.is_claimed]
        own = sum(wish.owner == owner for wish in claimed)
        asked_for = {wish.node_id for wish in claimed}
        unclaimed = (
            machine
            for machine in self._coming(self._clock.now())
            if machine.is_elastic
            and machine.node_id not in asked_for
            and machine.node_id not in self._left_at
            and need.suits(machine.kind)
        )
        return own + sum(1 for _ in unclaimed)

    def _end_if_useless(self, machine: Machine, now: float) -> None:
        node_id = machine.node_id
        if self._fleet.node(node_id) is None:
            if self._absent_s(machine, now) >= machine.boot_s:
                self._end(node_id, f"is no node after {machine.boot_s:g} s")
        elif not self._fleet.is_empty(node_id):
            since = self._empty_since.pop(node_id, now)
            if now - since > self._idle_s:
                self._was_worth_idling(machine, now)
        elif node_id in self._fleet.leaving():
            self._end(node_id, "is empty and will be taken away")
        elif now - self._empty_since.setdefault(node_id, now) >= self._idle_s and (
            self._num_idle(machine.kind) > self._may_idle.get(machine.kind, 0)
        ):
            self._fleet.leave(node_id, now=now, detail="idle")
            self._end(
                node_id, f"idle for {self._idle_s:g} s", stops=self._standby_lacks(machine.kind)
            )

    def _num_idle(self, kind: MachineKind) -> int:
        leaving = self._fleet.leaving()
        return sum(
            it.kind == kind
            and it.is_elastic
            and it.node_id in self._empty_since
            and it.node_id not in self._ending
            and it.node_id not in leaving
            for it in self._running()
        )

    def _was_worth_idling(self, machine: Machine, now: float) -> None:
        """Whoever found a machine that would have been ended, but for `let_idle`, needed one."""
        owner = self._fleet.on_node(machine.node_id)[-1].revision.name
        self._tell(Arrival(owner, machine.kind, now, 0.0, was_stopped=False, was_idle=True))

    def _standby_lacks(self, kind: MachineKind) -> bool:
        """Whether fewer wait than should: nothing came in the place of one that started."""
        waiting = sum(
            it.kind == kind and it.rung is Rung.STOPPED for it in self._capacity.describe()
        )
        return waiting < self.held(kind)

    def _end(self, node_id: NodeId, reason: str, *, stops: bool = False) -> None:
        """For good, or into standby."""
        if node_id in self._ending:
            return
        log.info("machine.ended", node=node_id, reason=reason, stops=stops)
        self._ending.add(node_id)
        self._tasks.start(self._take_down(node_id, stops=stops), name=f"end {node_id}")

    async def _take_down(self, node_id: NodeId, *, stops: bool) -> None:
        try:
            await (self._capacity.stop(node_id) if stops else self._capacity.terminate(node_id))
        except PlatformError as error:  # it is ended at a later sweep
            log.warning("machine.not-ended", node=node_id, detail=error.detail)
        finally:
            self._ending.discard(node_id)

    def _absent_s(self, machine: Machine, now: float) -> float:
        """How long a machine without a node has had to become one here."""
        left_at = self._left_at.get(machine.node_id, 0.0)
        return now - max(machine.launched_at, left_at, self._leads_since or 0.0)

    async def _launch(self, token: LaunchToken, need: Need) -> None:
        try:
            node_id, was_stopped = await self._find(need, token)
        except PlatformError as error:
            log.info("machine.refused", token=token, detail=error.detail, facts=error.facts)
            self._refuse(token, error)
        except Exception:  # a provider's own failure must not leave the request pending
            log.exception("machine.launch-failed", token=token)
            self._refuse(
                token,
                NoCapacity("a machine could not be started", hint="the platform's log says why"),
            )
        else:
            self._found(token, node_id, was_stopped)

    async def _find(self, need: Need, token: LaunchToken) -> tuple[NodeId, bool]:
        """The machine, and whether it was in standby."""
        try:
            started = await self._capacity.start(need, token=token)
        except NoCapacity as error:
            log.info("machine.not-started", detail=error.detail)
            started = None
        if started is not None:
            return started, True
        return await self._capacity.launch(need, token=token), False

    def _found(self, token: LaunchToken, node_id: NodeId, was_stopped: bool) -> None:
        wish = self._pending.get(token)
        if wish is None:
            return
        log.info("machine.comes", node=node_id, revision=wish.owner)
        self._ending.discard(node_id)
        self._answered_at[node_id] = self._clock.now()
        self._refusals.pop(wish.owner, None)
        self._pending[token] = replace(wish, node_id=node_id, was_stopped=was_stopped)
        if self._fleet.node(node_id) is not None:
            self._arrive(token)

    def _arrive(self, token: LaunchToken) -> None:
        wish = self._pending.pop(token)
        kinds = {machine.node_id: machine.kind for machine in self._running()}
        if wish.node_id is None or wish.node_id not in kinds:
            return
        seconds = self._clock.now() - wish.at
        self._tell(Arrival(wish.owner, kinds[wish.node_id], wish.at, seconds, wish.was_stopped))

    def _tell(self, arrival: Arrival) -> None:
        for listener in self._arrived:
            listener(arrival)

    def _refuse(self, token: LaunchToken, error: PlatformError) -> None:
        wish = self._pending.pop(token, None)
        if wish is None or not wish.is_claimed:
            return
        before = self._refusals.get(wish.owner)
        times = 1 if before is None else before.times + 1
        wait_s = error.facts.get("retry_after_s") or 0.0
        retry_at = self._clock.now() + max(self._ask_again.delay_s(times), wait_s)
        self._refusals[wish.owner] = Refusal(error, times, retry_at)
        for listener in self._refused:
            listener(wish.owner)

    def _node_changed(self, before: Node | None, after: Node | None) -> None:
        if before is None and after is not None:
            for token, wish in tuple(self._pending.items()):
                if wish.node_id == after.node_id:
                    self._arrive(token)
            self._refusals.clear()
        elif before is not None and after is None:
            self._left_at[before.node_id] = self._clock.now()

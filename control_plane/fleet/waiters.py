"""Tells those who wait for a revision in vain that they do."""

import asyncio
from collections.abc import Callable

from control_plane.fleet.machines import Machines
from control_plane.fleet.patience import Patience
from control_plane.fleet.plan import Plan
from control_plane.fleet.state import Fleet
from infra.clock import Clock
from infra.contracts.base import RevisionName
from infra.errors import NoCapacity, PlatformError, ProviderUnavailable, ReplicaFailed

SEE_NODES = "`platform nodes` shows what each node has"

FailedListener = Callable[[RevisionName, PlatformError], None]


class Waiters:
    """Knows whether there is hope; a listener hears from a callback of its own, never from inside
    a call of the reconciler."""

    def __init__(
        self, fleet: Fleet, machines: Machines, *, clock: Clock, patience: Patience
    ) -> None:
        self._fleet = fleet
        self._machines = machines
        self._clock = clock
        self._patience = patience
        self._listeners: list[FailedListener] = []

    def subscribe(self, listener: FailedListener) -> None:
        """Calls back with a ReplicaFailed, a NoCapacity (a QuotaExceeded) or a ProviderUnavailable
        (a Throttled); each has `retry_after_s`."""
        self._listeners.append(listener)

    def tell_if_hopeless(self, plan: Plan) -> None:
        """Tells them why, if it is in vain now."""
        if (error := self._hopeless(plan)) is not None:
            self._tell(plan, error)

    def tell_of_crashes(self, plan: Plan) -> None:
        """Tells them that the revision's replicas cannot start."""
        self._tell(plan, self._crash_error(plan))

    def _hopeless(self, plan: Plan) -> PlatformError | None:
        """Why requests for a revision wait in vain now; None while there is hope."""
        now = self._clock.now()
        if plan.crash.is_open and plan.is_backing_off(now=now):
            return self._crash_error(plan)
        no_room, refusal = plan.no_room, self._machines.refusal(plan.name)
        if plan.desired == 0 or no_room is None or refusal is None:
            return None
        if no_room.may_come or self._machines.are_coming():
            return None
        if not self._fleet.nodes() and now - plan.wanted_at < self._patience.node_wait_s:
            return None
        kind, why = _told(refusal.error)
        plan.refused = f"{no_room.reason}; {why}"
        return kind(
            plan.refused,
            hint=refusal.error.hint or no_room.hint or SEE_NODES,
            revision=plan.name,
            retry_after_s=max(1.0, refusal.retry_at - now),
        )

    def _crash_error(self, plan: Plan) -> PlatformError:
        crash = plan.crash
        return ReplicaFailed(
            f"replicas of {plan.name} cannot start: {crash.why()}",
            hint=crash.hint or f"`platform logs {plan.revision.model}` has their last words",
            revision=plan.name,
            cause=crash.code,
            failures=crash.failures,
            is_permanent=crash.is_permanent,
            retry_after_s=crash.wait_s(self._clock.now()),
        )

    def _tell(self, plan: Plan, error: PlatformError) -> None:
        asyncio.get_running_loop().call_soon(self._call_listeners, plan.name, error)

    def _call_listeners(self, revision: RevisionName, error: PlatformError) -> None:
        """Requests do not wait in vain while a replica serves them or may yet."""
        is_loading = self._fleet.climb(revision) is not None
        if self._fleet.ready(revision) or (is_loading and not error.facts.get("is_permanent")):
            return
        for listener in self._listeners:
            listener(revision, error)


def _told(error: PlatformError) -> tuple[type[PlatformError], str]:
    """What tenants hear: a provider that refuses for good, with a code of its own, names accounts
    and roles, which stay in our log."""
    if isinstance(error, NoCapacity | ProviderUnavailable):
        return type(error), error.detail
    codes = [pool["code"] for pool in error.facts.get("tried") or [error.facts] if "code" in pool]
    return NoCapacity, f"no machine can be started: {codes[-1]}" if codes else error.detail

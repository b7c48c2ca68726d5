"""A new instance at once: LaunchInstances, pool by pool and zone by zone until one gives it."""

import hashlib
from collections.abc import Iterable
from typing import Any, Final

import structlog

from control_plane.capacity.ec2.calls import Calls
from control_plane.capacity.ec2.growing import Growing
from control_plane.capacity.ec2.pools import Pool
from control_plane.capacity.ec2.refusals import Refusal, error_after
from control_plane.capacity.port import LaunchToken
from infra.clock import Clock
from infra.contracts.base import NodeId
from infra.errors import BadSpec, NoCapacity

log = structlog.get_logger()

_SHORT_FOR_S: Final = 120.0  # a pool that had nothing is asked last for so long


class Launching:
    """Launches, and remembers which pools and zones had nothing a moment ago."""

    def __init__(self, calls: Calls, growing: Growing, *, clock: Clock) -> None:
        self._calls = calls
        self._growing = growing
        self._clock = clock
        self._short_since: dict[tuple[str, str | None], float] = {}

    async def launch(self, pools: Iterable[Pool], token: LaunchToken) -> tuple[NodeId, Pool]:
        """An instance, and of which of these pools: the first that has one, in any of its zones.

        Raises NoCapacity, QuotaExceeded or BadSpec with what was `tried`, and ProviderUnavailable
        at once: whether that launch was made is then not known, and its token finds out.
        """
        refusals: list[Refusal] = []
        full: set[str] = set()
        for pool, zone in self._in_order(pools):
            if pool.name in full:
                continue
            if await self._growing.is_full(pool.name):
                full.add(pool.name)
                refusals.append(Refusal(pool.name, "MaxSizeReached", f"it has {pool.most}"))
                continue
            found = await self._launch(pool, zone, token)
            if not isinstance(found, Refusal):
                self._short_since.pop((pool.name, zone), None)
                return found, pool
            log.info("ec2.refused", pool=pool.name, zone=zone, code=found.code)
            self._short_since[pool.name, zone] = self._clock.now()
            refusals.append(found)
        raise error_after(refusals)

    def _in_order(self, pools: Iterable[Pool]) -> list[tuple[Pool, str | None]]:
        """As the pools come, zone by zone; who had nothing a moment ago comes after all others."""
        now = self._clock.now()
        places = [(pool, zone) for pool in pools for zone in self._zones(pool)]

        def is_short(place: tuple[Pool, str | None]) -> bool:
            since = self._short_since.get((place[0].name, place[1]))
            return since is not None and now - since < _SHORT_FOR_S

        return sorted(places, key=is_short)

    def _zones(self, pool: Pool) -> tuple[str | None, ...]:
        """Without LaunchInstances the group chooses its zone."""
        return pool.zones if self._launches_at_once() else (None,)

    def _launches_at_once(self) -> bool:
        return hasattr(self._calls.clients.autoscaling, "launch_instances")

    async def _launch(self, pool: Pool, zone: str | None, token: LaunchToken) -> NodeId | Refusal:
        try:
            if zone is None:
                return await self._growing.grow(pool.name)
            answer = await self._calls(
                self._calls.clients.autoscaling.launch_instances,
                AutoScalingGroupName=pool.name,
                RequestedCapacity=1,
                AvailabilityZones=[zone],
                ClientToken=_client_token(token, pool.name, zone),
                RetryStrategy="none",
            )
        except (NoCapacity, BadSpec) as error:
            return Refusal(pool.name, error.facts.get("code", "Refused"), error.detail, zone)
        return _outcome(answer, pool, zone)


def _outcome(answer: dict[str, Any], pool: Pool, zone: str) -> NodeId | Refusal:
    for launched in answer.get("Instances") or []:
        for instance_id in launched.get("InstanceIds") or []:
            return NodeId(instance_id)
    errors = answer.get("Errors") or [{}]
    code = errors[0].get("ErrorCode", "NothingCame")
    return Refusal(pool.name, code, errors[0].get("ErrorMessage", "no instance came"), zone)


def _client_token(token: LaunchToken, pool: str, zone: str) -> str:
    """AWS holds a token to its arguments, so each pool and zone has one of its own."""
    return hashlib.sha256(f"{token} {pool} {zone}".encode()).hexdigest()[:32]

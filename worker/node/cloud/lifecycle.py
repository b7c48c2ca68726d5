"""A machine of a group from boot to end: warms, serves, leaves, and says when it is done."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from worker.node.cloud.port import (
    Hook,
    Hooks,
    HooksUnavailable,
    Metadata,
    MetadataUnavailable,
    NobodyWaits,
    Notice,
    Target,
)

log = structlog.get_logger()

LOOK_S = 1.0  # between two looks at what becomes of the machine
AGAIN_S = 5.0  # between two words of which the first was not heard
HEARTBEAT_S = 30.0  # terraform/ lets hooks wait for 120 s and 300 s
NOTICE_S = 5.0  # as UserGuide/spot-instance-termination-notices recommends
UNHEARD_S = 120.0  # a group that has not begun to wait yet does so within that


class Work(Protocol):
    """What the agent does meanwhile. Calls return at once and may be repeated."""

    def warm(self) -> None:
        """Does once what a start does, so that the next one finds everything at hand."""

    @property
    def is_warm(self) -> bool: ...

    def serve(self) -> None:
        """Joins the control plane, to stay."""

    @property
    def is_serving(self) -> bool:
        """The control plane knows the node and may send it replicas."""

    def announce(self, notice: Notice) -> None:
        """Lets the control plane know that the machine will be taken away."""

    @property
    def is_idle(self) -> bool:
        """No replica is left."""

    async def leave(self) -> None:
        """Says goodbye to the control plane."""


class Lifecycle:
    """Follows what the group wants of the machine; `run` never ends itself.

    A hook is completed when what it waits for is true, and never because time has passed: until
    then the group hears heartbeats, and what it does with a machine that cannot is up to it.
    """

    def __init__(self, metadata: Metadata, hooks: Hooks | None, work: Work) -> None:
        self._metadata = metadata
        self._hooks = hooks
        self._work = work
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """From boot to boot: what was completed before an agent started again is not waited for."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_notices(), name="node.notices")
            target = await self._first_target()
            while True:
                log.info("machine.goes-to", target=target.value)
                match target:
                    case Target.WARM:
                        target = await self._warm()
                    case Target.SERVE:
                        target = await self._serve()
                    case Target.LEAVE:
                        target = await self._until_other(Target.LEAVE)

    async def _first_target(self) -> Target:
        """A group says it at once or soon after; a machine of none serves."""
        patience_s = 0.0 if self._hooks is None else 30.0
        deadline = self._loop.time() + patience_s
        while True:
            target = await self._look()
            if target is not None or self._loop.time() >= deadline:
                return target or Target.SERVE
            await asyncio.sleep(LOOK_S)

    async def _warm(self) -> Target:
        self._work.warm()
        target = await self._when(lambda: self._work.is_warm, Target.WARM, Hook.LAUNCHING)
        return target or await self._until_other(Target.WARM)

    async def _serve(self) -> Target:
        self._work.serve()
        target = await self._when(lambda: self._work.is_serving, Target.SERVE, Hook.LAUNCHING)
        target = target or await self._until_other(Target.SERVE)
        self._work.announce(Notice("its group takes it out of service"))
        other = await self._when(
            lambda: self._work.is_idle, target, Hook.TERMINATING, last=self._work.leave
        )
        return other or target

    async def _when(
        self,
        is_true: Callable[[], bool],
        target: Target,
        hook: Hook,
        *,
        last: Callable[[], Awaitable[None]] | None = None,
    ) -> Target | None:
        """Heartbeats until it is true, then the word that it is; another target, if that comes
        first."""
        beat_at = self._loop.time() + HEARTBEAT_S
        while not is_true():
            if self._loop.time() >= beat_at:
                beat_at = self._loop.time() + HEARTBEAT_S
                await self._beat(hook)
            await asyncio.sleep(LOOK_S / 4)
            other = await self._look()
            if other not in {None, target}:
                return other
        if last is not None:
            await last()
        return await self._complete(hook, target)

    async def _beat(self, hook: Hook) -> None:
        if self._hooks is None:
            return
        try:
            await self._hooks.heartbeat(hook)
        except (NobodyWaits, HooksUnavailable) as error:
            log.info("hook.unheard", hook=hook.value, why=str(error))

    async def _complete(self, hook: Hook, target: Target) -> Target | None:
        """Until the group has heard it, or has waited for none for long; another target, if that
        comes first."""
        if self._hooks is None:
            return None
        deadline = self._loop.time() + UNHEARD_S
        while True:
            try:
                await self._hooks.complete(hook)
            except NobodyWaits as error:
                if self._loop.time() >= deadline:
                    log.info("hook.not-waited-for", hook=hook.value, why=str(error))
                    return None
            except HooksUnavailable as error:
                log.warning("hook.unheard", hook=hook.value, why=str(error))
            else:
                log.info("hook.completed", hook=hook.value)
                return None
            await asyncio.sleep(AGAIN_S)
            other = await self._look()
            if other not in {None, target}:
                return other

    async def _until_other(self, target: Target) -> Target:
        while True:
            other = await self._look()
            if other is not None and other is not target:
                return other
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> Target | None:
        """What the metadata say; None while they say nothing."""
        try:
            return await self._metadata.target()
        except MetadataUnavailable as error:
            log.warning("metadata.unavailable", why=str(error))
            return None

    async def _watch_notices(self) -> None:
        heard: Notice | None = None
        while True:
            try:
                notice = await self._metadata.notice()
            except MetadataUnavailable as error:
                log.warning("metadata.unavailable", why=str(error))
                notice = None
            if notice is not None and notice != heard:
                log.warning("machine.will-be-taken", reason=notice.reason, at=notice.at)
                self._work.announce(notice)
                heard = notice
            await asyncio.sleep(NOTICE_S)

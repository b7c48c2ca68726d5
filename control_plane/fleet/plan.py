"""What a revision should have, and how that went so far."""

import asyncio
import math
from dataclasses import dataclass

from control_plane.fleet.crash_loop import CrashLoop
from control_plane.fleet.placement import NoRoom
from infra.contracts.base import RevisionName
from infra.contracts.revision import Revision
from infra.contracts.stage import StageTiming


@dataclass(frozen=True, slots=True)
class Standing:
    """How a revision stands with its reconciler."""

    desired: int = 0
    reason: str = ""
    crash: CrashLoop = CrashLoop()  # noqa: RUF009 - frozen value
    blocked: str | None = None  # waits for room
    refused: str | None = None  # there was none to be had, and its waiters were told
    expected: int = 0  # replicas, on nodes that are not back yet


class Plan:
    """Owned by the reconciler, one a revision."""

    def __init__(self, revision: Revision, *, wanted_at: float) -> None:
        self.revision = revision
        self.desired = 0
        self.reason = ""
        self.no_room: NoRoom | None = None  # while it waits for some
        self.refused: str | None = None
        self.abandon_loading = False
        self.is_converging = False
        self.is_stale = False
        self.wanted_at = wanted_at
        self.asked_for_room_at = -math.inf
        self.crash = CrashLoop()
        self.legacy: tuple[StageTiming, ...] = ()
        self.retry: asyncio.TimerHandle | None = None

    @property
    def name(self) -> RevisionName:
        return self.revision.name

    def standing(self, *, expected: int = 0) -> Standing:
        """The part that others may know."""
        blocked = None if self.no_room is None else self.no_room.reason
        return Standing(self.desired, self.reason, self.crash, blocked, self.refused, expected)

    def is_backing_off(self, *, now: float) -> bool:
        """Its replicas failed so often that the next one has to wait."""
        return self.crash.wait_s(now) > 0

    def cancel_retry(self) -> None:
        """May be repeated."""
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None

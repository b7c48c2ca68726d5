"""What the agent of a rented machine asks of the cloud: the ports, and the values that pass."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class MetadataUnavailable(Exception):
    """The machine cannot be told of itself now; ask again later."""


class HooksUnavailable(Exception):
    """The group cannot be told now, or refuses to listen; try again later."""


class NobodyWaits(Exception):
    """The group waits for no such word: it has had it, or does not wait yet."""


class Target(StrEnum):
    """What becomes of the machine next."""

    SERVE = "serve"
    WARM = "warm"  # stopped or idle, until it is needed
    LEAVE = "leave"


class Hook(StrEnum):
    """Where its group waits for a word of the machine; terraform/ gives hooks these names."""

    LAUNCHING = "firstlight-launching"
    TERMINATING = "firstlight-terminating"


@dataclass(frozen=True, slots=True)
class Instance:
    """One machine as its cloud names it; `asked_at`: when this run of it was asked for, in unix
    seconds of the cloud's clock, to the second."""

    instance_id: str
    region: str
    asked_at: float | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """The machine will be taken away: why, and when in unix seconds, where that is said."""

    reason: str
    at: float | None = None


class Metadata(Protocol):
    """What a machine can read of itself. Calls may be repeated and raise MetadataUnavailable."""

    async def instance(self) -> Instance: ...

    async def target(self) -> Target | None:
        """None where no group has the machine, or it has not said yet."""

    async def notice(self) -> Notice | None: ...

    def close(self) -> None:
        """Closes the connection."""


class Hooks(Protocol):
    """What a machine tells the group that it is of.

    Calls may be repeated; they raise HooksUnavailable and NobodyWaits.
    """

    async def heartbeat(self, hook: Hook) -> None:
        """It still works at it: the group's patience begins anew."""

    async def complete(self, hook: Hook) -> None:
        """It is done: the group goes on with it."""

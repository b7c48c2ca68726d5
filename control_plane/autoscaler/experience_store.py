"""The port to where what was learnt of each model is kept over a restart, and what is kept."""

from collections.abc import Collection, Mapping
from typing import Annotated, Protocol

from pydantic import Field

from control_plane.autoscaler import experience, keep_alive
from infra.contracts.base import Contract, ModelName

_LONGEST_S = 10 * 365 * 24 * 3600.0

Seconds = Annotated[float, Field(ge=0, le=_LONGEST_S, allow_inf_nan=False)]
Times = Annotated[tuple[Seconds, ...], Field(max_length=keep_alive.REMEMBERED)]
Climbs = Annotated[tuple[Seconds, ...], Field(max_length=experience.REMEMBERED)]


class Learnt(Contract):
    """What was learnt of one model until `at`: at most some 2 KiB."""

    at: float = Field(allow_inf_nan=False)
    idle_times: Times = ()
    saved_s: Seconds | None = None
    climbs: Climbs = ()
    waits: Climbs = ()
    service_s: Seconds | None = None


class ExperienceStore(Protocol):
    """Every method may be repeated, and raises StoreUnavailable."""

    async def read(self) -> Mapping[ModelName, Learnt]:
        """All that is kept; what cannot be read is left out."""
        ...

    async def write(
        self, learnt: Mapping[ModelName, Learnt], *, forgotten: Collection[ModelName]
    ) -> None:
        """Keeps these in the place of what was kept of the same models, and forgets others."""
        ...


class MemoryExperienceStore:
    """The ExperienceStore of tests and of a platform that keeps nothing."""

    def __init__(self) -> None:
        self.kept: dict[ModelName, Learnt] = {}

    async def read(self) -> Mapping[ModelName, Learnt]:
        return dict(self.kept)

    async def write(
        self, learnt: Mapping[ModelName, Learnt], *, forgotten: Collection[ModelName]
    ) -> None:
        self.kept.update(learnt)
        for model in forgotten:
            self.kept.pop(model, None)

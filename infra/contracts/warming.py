"""Replicas of a revision that are ready before requests are sent there."""

from pydantic import Field

from infra.contracts.base import Contract, RevisionName
from infra.contracts.release import NamedRevision
from infra.contracts.revision import ModelState


class Warming(Contract):
    """What is asked for before a revision gets requests; asked again, it lasts longer."""

    revision: NamedRevision
    replicas: int = Field(default=1, ge=1, le=1000, description="At most its `scaling.max`.")
    seconds: float = Field(default=60, gt=0, le=3600, description="How long they are kept.")


class WarmStatus(Contract):
    """How far a revision is that is being warmed."""

    revision: RevisionName
    replicas: int = Field(description="Kept, whatever is asked of it.")
    ready: int
    until: float = Field(description="When they are let go, unless it is in traffic then.")
    state: ModelState
    reason: str
    hint: str | None = Field(default=None, description="What to do where its replicas failed.")

    @property
    def is_warm(self) -> bool:
        """Requests that go there find what was asked for."""
        return self.ready >= self.replicas

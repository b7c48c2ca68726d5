"""The port to where deployed models are kept, and the values that pass through it."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

from infra.contracts.base import Contract, ModelName, RevisionName
from infra.contracts.model_spec import ModelSpec
from infra.contracts.revision import ModelFacts, ResolvedSource, Revision
from infra.contracts.tenancy import DEFAULT_TENANT, Tenant, TenantName


@dataclass(frozen=True, slots=True)
class Change:
    """What a model's requests went to before and go to after; None where it is not deployed."""

    model: ModelName
    before: Revision | None
    after: Revision | None

    @property
    def is_change(self) -> bool:
        return self.before != self.after


class RevisionDraft(Contract):
    """A revision that has no number yet; the store gives it one."""

    spec: ModelSpec
    source: ResolvedSource
    draft_source: ResolvedSource | None = None
    facts: ModelFacts
    digest: str
    created_at: float
    tenant: Tenant = DEFAULT_TENANT

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        source: ResolvedSource,
        facts: ModelFacts,
        *,
        draft_source: ResolvedSource | None = None,
        tenant: TenantName = DEFAULT_TENANT,
        now: float,
    ) -> "RevisionDraft":
        """Pins the spec to its resolved sources; equal content has an equal digest."""
        return cls(
            spec=spec,
            source=source,
            draft_source=draft_source,
            facts=facts,
            digest=spec_digest(spec, source, draft_source),
            created_at=now,
            tenant=tenant,
        )

    @property
    def model(self) -> ModelName:
        return self.spec.name

    def numbered(self, number: int) -> Revision:
        """The revision this draft becomes."""
        return Revision(
            name=RevisionName(f"{self.model}@{number}"),
            model=self.model,
            number=number,
            tenant=self.tenant,
            spec=self.spec,
            source=self.source,
            draft_source=self.draft_source,
            facts=self.facts,
            digest=self.digest,
            created_at=self.created_at,
        )


def spec_digest(spec: ModelSpec, *sources: ResolvedSource | None) -> str:
    """sha256:<hex> over the spec's canonical JSON and the pinned content."""
    digest = hashlib.sha256(spec.model_dump_json().encode())
    for source in sources:
        if source is not None:
            digest.update(b"\0" + source.digest.encode())
    return f"sha256:{digest.hexdigest()}"


class DeploymentStore(Protocol):
    """Every method is atomic and may be repeated; StoreUnavailable says that it is not known
    whether the change was made, and repeating it finds out.
    """

    async def publish(self, draft: RevisionDraft) -> Change:
        """Makes the draft's revision the model's current one.

        A digest this model has had before gives the old revision and its old number; numbers are
        never used twice, not even after `retire`.
        """
        ...

    async def retire(self, model: ModelName) -> Change:
        """Takes a model and its revisions away; a model that is not there stays not there."""
        ...

    async def current(self) -> tuple[Revision, ...]:
        """The current revision of every model, by name."""
        ...

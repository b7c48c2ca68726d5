"""The port to where deployed models are kept, and the values that pass through it."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from control_plane.deployments.record import Record
from control_plane.deployments.release import Release, Share
from infra.contracts.base import Contract, ModelName, RevisionName
from infra.contracts.image import ResolvedImage
from infra.contracts.model_spec import ModelSpec
from infra.contracts.revision import ModelFacts, ResolvedSource, Revision
from infra.contracts.tenancy import DEFAULT_TENANT, Tenant, TenantName
from infra.errors import Conflict, StoreUnavailable


@dataclass(frozen=True, slots=True)
class Change:
    """What a model's requests went to before and go to after; None where it is not deployed."""

    model: ModelName
    before: Release | None
    after: Release | None

    @property
    def is_change(self) -> bool:
        return _shares(self.before) != _shares(self.after)

    @property
    def left(self) -> tuple[Revision, ...]:
        """Revisions that get no request from now on."""
        staying = {share.revision.name for share in _shares(self.after)}
        leaving = (share.revision for share in _shares(self.before))
        return tuple(revision for revision in leaving if revision.name not in staying)


def _shares(release: Release | None) -> tuple[Share, ...]:
    return () if release is None else release.shares


class RevisionDraft(Contract):
    """A revision that has no number yet; the store gives it one."""

    spec: ModelSpec
    source: ResolvedSource
    draft_source: ResolvedSource | None = None
    image: ResolvedImage | None = None
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
        image: ResolvedImage | None = None,
        tenant: TenantName = DEFAULT_TENANT,
        now: float,
    ) -> "RevisionDraft":
        """Pins the spec to its resolved sources and image; equal content has an equal digest."""
        return cls(
            spec=spec,
            source=source,
            draft_source=draft_source,
            image=image,
            facts=facts,
            digest=spec_digest(spec, source, draft_source, image=image),
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
            image=self.image,
            facts=self.facts,
            digest=self.digest,
            created_at=self.created_at,
        )


def spec_digest(
    spec: ModelSpec, *sources: ResolvedSource | None, image: ResolvedImage | None = None
) -> str:
    """sha256:<hex> over the spec's canonical JSON and the pinned content."""
    digest = hashlib.sha256(spec.model_dump_json().encode())
    for source in sources:
        if source is not None:
            digest.update(b"\0" + source.digest.encode())
    if image is not None:
        digest.update(b"\0" + image.reference.encode())
    return f"sha256:{digest.hexdigest()}"


class Kept(NamedTuple):
    """A deployed model as the store has it, with its revisions that are in traffic."""

    record: Record
    revisions: tuple[Revision, ...]


def release_of(record: Record, revisions: Iterable[Revision]) -> Release:
    """What the record says; raises StoreUnavailable unless all that it has in traffic are there."""
    shares = [Share(revision, record.percents[revision.number]) for revision in revisions]
    if len(shares) != len(record.percents):
        raise StoreUnavailable(f"not all revisions of {record.model} in traffic can be read")
    shares.sort(key=lambda share: (share.percent, share.revision.number), reverse=True)
    return Release(tuple(shares), record.generation)


def overtaken(model: ModelName) -> Conflict:
    """What `write` raises."""
    return Conflict(f"model {model} was changed at the same time", hint="try again")


class DeploymentStore(Protocol):
    """Every method is atomic and may be repeated; StoreUnavailable says that it is not known
    whether a change was made, and reading finds out.
    """

    async def load(self) -> tuple[Kept, ...]:
        """Every deployed model, by name; what cannot be read is left out."""
        ...

    async def read(self, model: ModelName) -> Record:
        """A model's record; an empty one of generation 0 where there was never such a model."""
        ...

    async def revisions(self, record: Record, numbers: Iterable[int]) -> tuple[Revision, ...]:
        """Those revisions of a model, in that order; what is not kept (any more) is left out."""
        ...

    async def write(self, record: Record, added: RevisionDraft | None = None) -> None:
        """Puts the record in the place of the generation before it, with the draft as the revision
        `record.last_number`; revisions that the record does not have are gone.

        All of it happens, or nothing: then Conflict says that another change came first. Repeating
        the change that was made last is none.
        """
        ...

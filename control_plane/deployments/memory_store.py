"""Deployed models that end with the process."""

from collections.abc import Iterable

from control_plane.deployments.record import Record
from control_plane.deployments.store import Kept, RevisionDraft, overtaken
from infra.contracts.base import ModelName
from infra.contracts.revision import Revision


class MemoryDeploymentStore:
    """The DeploymentStore of tests and of a platform that keeps nothing."""

    def __init__(self) -> None:
        self._records: dict[ModelName, Record] = {}
        self._revisions: dict[ModelName, dict[int, Revision]] = {}

    async def load(self) -> tuple[Kept, ...]:
        deployed = [it for _, it in sorted(self._records.items()) if it.is_deployed]
        return tuple([Kept(it, await self.revisions(it, it.percents)) for it in deployed])

    async def read(self, model: ModelName) -> Record:
        return self._records.get(model) or Record(model=model)

    async def revisions(self, record: Record, numbers: Iterable[int]) -> tuple[Revision, ...]:
        kept = self._revisions.get(record.model, {})
        return tuple(kept[number] for number in numbers if number in kept)

    async def write(self, record: Record, added: RevisionDraft | None = None) -> None:
        before = await self.read(record.model)
        if before == record:
            return
        if before.generation != record.generation - 1:
            raise overtaken(record.model)
        kept = self._revisions.get(record.model, {})
        if added is not None:
            kept = kept | {record.last_number: added.numbered(record.last_number)}
        self._records[record.model] = record
        self._revisions[record.model] = {it: kept[it] for it in record.digests}

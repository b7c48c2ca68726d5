"""Deployed models that end with the process."""

from control_plane.deployments.store import Change, RevisionDraft
from infra.contracts.base import ModelName
from infra.contracts.revision import Revision


class MemoryDeploymentStore:
    """The DeploymentStore of tests and of a platform that keeps nothing."""

    def __init__(self) -> None:
        self._current: dict[ModelName, Revision] = {}
        self._by_digest: dict[ModelName, dict[str, Revision]] = {}
        self._last_number: dict[ModelName, int] = {}

    async def publish(self, draft: RevisionDraft) -> Change:
        model = draft.model
        before = self._current.get(model)
        after = self._by_digest.setdefault(model, {}).get(draft.digest) or self._number(draft)
        self._current[model] = after
        return Change(model, before, after)

    async def retire(self, model: ModelName) -> Change:
        self._by_digest.pop(model, None)
        return Change(model, self._current.pop(model, None), None)

    async def current(self) -> tuple[Revision, ...]:
        return tuple(self._current[model] for model in sorted(self._current))

    def _number(self, draft: RevisionDraft) -> Revision:
        number = self._last_number.get(draft.model, 0) + 1
        self._last_number[draft.model] = number
        revision = draft.numbered(number)
        self._by_digest[draft.model][draft.digest] = revision
        return revision

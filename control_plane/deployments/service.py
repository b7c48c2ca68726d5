"""Deployed models: a spec becomes an immutable revision, and everybody concerned hears of it."""

import asyncio
from collections.abc import Callable

import structlog

from control_plane.deployments.resolver import Resolver
from control_plane.deployments.store import Change, DeploymentStore, RevisionDraft
from control_plane.tenancy.identity import OPERATOR, Identity
from infra.contracts.base import ModelName
from infra.contracts.model_spec import ModelSpec
from infra.contracts.revision import ModelFacts, ResolvedSource, Revision
from infra.contracts.tenancy import TenantName
from infra.errors import Conflict, ModelNotFound, SourceInvalid

log = structlog.get_logger()

ChangeListener = Callable[[Change], None]


class Deployments:
    """Owns which revision each model's requests go to; reads are from memory."""

    def __init__(self, store: DeploymentStore, resolver: Resolver) -> None:
        self._store = store
        self._resolver = resolver
        self._current: dict[ModelName, Revision] = {}
        self._listeners: list[ChangeListener] = []
        # Guards the order of changes: listeners hear them in the order the store made them.
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        """Reads what is deployed; call once, after every listener has subscribed."""
        for revision in await self._store.current():
            self._announce(Change(revision.model, None, revision))

    async def deploy(self, spec: ModelSpec, *, by: Identity = OPERATOR, now: float) -> Revision:
        """Pins the spec and makes it current; an equal one of equal content changes nothing.

        A new model belongs to who deploys it first. Raises Conflict for a name that another tenant
        has, what the resolver raises, and StoreUnavailable.
        """
        self._owner(spec.name, by)
        source, facts = await self._resolver.resolve(spec.source)
        draft_source = await self._resolve_draft(spec, facts)
        async with self._changing:
            owner = self._owner(spec.name, by)
            draft = RevisionDraft.of(
                spec, source, facts, draft_source=draft_source, tenant=owner, now=now
            )
            change = await self._store.publish(draft)
            self._announce(change)
        assert change.after is not None, "publishing gives a revision"
        return change.after

    async def _resolve_draft(self, spec: ModelSpec, facts: ModelFacts) -> ResolvedSource | None:
        """Pins the draft model; raises SourceInvalid where it has other tokens than the model."""
        if spec.engine.draft_source is None:
            return None
        source, draft_facts = await self._resolver.resolve(spec.engine.draft_source)
        if draft_facts.vocabulary != facts.vocabulary:
            raise SourceInvalid(
                f"the draft model has a vocabulary of {draft_facts.vocabulary} tokens, the model "
                f"one of {facts.vocabulary}",
                hint="a draft model has the tokenizer of the model it guesses for",
                param="engine.draft_source",
            )
        return source

    async def delete(self, name: ModelName, *, now: float) -> None:
        """Takes a model away; raises ModelNotFound, StoreUnavailable."""
        async with self._changing:
            change = await self._store.retire(name)
            was_known = name in self._current
            self._announce(change)
        if change.before is None and not was_known:
            raise ModelNotFound(f"no model {name} is deployed", model=name)
        log.info("model.deleted", model=name, at=now)

    def _owner(self, name: ModelName, by: Identity) -> TenantName:
        """Whose model it is after a deployment by that identity."""
        current = self._current.get(name)
        if current is None:
            return by.tenant
        if not by.owns(current):
            raise Conflict(f"the name {name} is taken", hint="choose another name")
        return current.tenant

    def get(self, name: ModelName) -> Revision | None:
        """The revision that requests for a model go to."""
        return self._current.get(name)

    def all(self) -> tuple[Revision, ...]:
        """The current revision of every model, by name."""
        return tuple(self._current[name] for name in sorted(self._current))

    def subscribe(self, listener: ChangeListener) -> None:
        """Calls the listener at every change, in order, on the event loop; it must not raise."""
        self._listeners.append(listener)

    def _announce(self, change: Change) -> None:
        """Takes the change over; our own memory, not the store's reply, says what was before:
        a change whose reply was lost is announced by its repetition."""
        before = self._current.get(change.model)
        seen = Change(change.model, before, change.after)
        if not seen.is_change:
            return
        if seen.after is None:
            self._current.pop(seen.model, None)
        else:
            self._current[seen.model] = seen.after
        for listener in self._listeners:
            listener(seen)

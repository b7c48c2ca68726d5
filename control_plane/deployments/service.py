"""Deployed models: a spec becomes an immutable revision, and everybody concerned hears of it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

import structlog

from control_plane.deployments.images import ImageResolver, KnownImages
from control_plane.deployments.record import Record
from control_plane.deployments.release import Release, Route
from control_plane.deployments.resolver import Resolver
from control_plane.deployments.store import (
    Change,
    DeploymentStore,
    RevisionDraft,
    overtaken,
    release_of,
)
from control_plane.deployments.wishes import check_generation, check_percents, number_of
from control_plane.tenancy.identity import OPERATOR, Identity
from infra.contracts.base import ModelName, RevisionName
from infra.contracts.image import ResolvedImage
from infra.contracts.model_spec import ModelSpec
from infra.contracts.revision import ModelFacts, ResolvedSource, Revision
from infra.contracts.tenancy import TenantName
from infra.errors import Conflict, Invalid, ModelNotFound, SourceInvalid

log = structlog.get_logger()

ChangeListener = Callable[[Change], None]
ImageListener = Callable[[ResolvedImage], None]
Loader = Callable[[], Awaitable[None]]
RecordChange = Callable[[Record], Record]

_MOST_TRIES = 5


class Deployments:
    """Owns what each model's requests go to; reads of that are from memory."""

    def __init__(
        self,
        store: DeploymentStore,
        resolver: Resolver,
        images: ImageResolver | None = None,
    ) -> None:
        self._store = store
        self._resolver = resolver
        self._images = images or KnownImages({})
        self._routes: dict[ModelName, Route] = {}
        self._live: dict[RevisionName, Revision] = {}
        self._listeners: list[ChangeListener] = []
        self._pinned_listeners: list[ImageListener] = []
        self._loaders: list[Loader] = []
        # Guards the order of changes: listeners hear them in the order the store made them.
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        """Reads what is deployed, once every listener has subscribed, and again when another
        process may have changed it."""
        async with self._changing:
            for load in self._loaders:
                await load()
            found = {
                record.model: release_of(record, revisions)
                for record, revisions in await self._store.load()
            }
            for model in sorted(self._routes.keys() - found.keys()):
                self._announce(model, None)
            for model, release in found.items():
                self._announce(model, release)

    # -- changes -------------------------------------------------------------------------------

    async def deploy(
        self, spec: ModelSpec, *, by: Identity = OPERATOR, takes_traffic: bool = True, now: float
    ) -> Revision:
        """Pins the spec as a revision, which gets all requests, or with `takes_traffic` unset none
        until somebody says so; an equal one of equal content changes nothing but that.

        A new model belongs to who deploys it first. Raises Conflict for a name that another tenant
        has, Invalid for a new model without traffic, what the resolvers raise, StoreUnavailable.
        """
        self._owner(spec.name, by)
        source, facts = await self._resolver.resolve(spec.source)
        draft_source = await self._resolve_draft(spec, facts)
        image = await self._images.resolve(spec.image)
        if image is not None:
            for listener in self._pinned_listeners:
                listener(image)
        async with self._changing:
            draft = RevisionDraft.of(
                spec,
                source,
                facts,
                draft_source=draft_source,
                image=image,
                tenant=self._owner(spec.name, by),
                now=now,
            )

            def published(record: Record) -> Record:
                if not (takes_traffic or record.is_deployed):
                    raise Invalid(
                        f"no other revision of {spec.name} could take its requests",
                        hint="deploy the first one with traffic",
                    )
                return record.published(draft.digest, takes_traffic=takes_traffic)

            record = await self._change(spec.name, published, draft)
            number = record.number_of(draft.digest)
            assert number is not None, "it was published"
            for revision in await self._revisions(record, (number,)):
                return revision
        raise overtaken(spec.name)  # another control plane has dropped it already

    async def split(
        self,
        model: ModelName,
        percents: Mapping[RevisionName, int],
        *,
        by: Identity = OPERATOR,
        generation: int | None = None,
    ) -> Release:
        """Splits the requests of a model, from the next one on.

        With a `generation`, only if nothing has changed since it was read. Raises ModelNotFound,
        RevisionNotFound, Invalid, Conflict and StoreUnavailable.
        """
        check_percents(percents)

        def split(record: Record) -> Record:
            check_generation(record, generation)
            return record.split({number_of(record, it): share for it, share in percents.items()})

        return await self._redirect(model, split, by)

    async def rollback(
        self,
        model: ModelName,
        to: RevisionName | None = None,
        *,
        by: Identity = OPERATOR,
        generation: int | None = None,
    ) -> Release:
        """Sends all requests to a former revision, else to the one that had them all last.

        Raises what `split` raises; Conflict where there is none to go back to.
        """

        def rolled_back(record: Record) -> Record:
            check_generation(record, generation)
            number = record.previous if to is None else number_of(record, to)
            if number is None:
                raise Conflict(f"no other revision of {model} has ever had all requests")
            return record.split({number: 100})

        return await self._redirect(model, rolled_back, by)

    async def delete(self, name: ModelName, *, now: float) -> None:
        """Takes a model and its revisions away; raises ModelNotFound, StoreUnavailable."""
        async with self._changing:
            was_known = name in self._routes
            was_deployed = False

            def retired(record: Record) -> Record:
                nonlocal was_deployed
                was_deployed = was_deployed or record.is_deployed
                return record.retired()

            await self._change(name, retired)
        if not (was_deployed or was_known):
            raise ModelNotFound(f"no model {name} is deployed", model=name)
        log.info("model.deleted", model=name, at=now)

    # -- reading -------------------------------------------------------------------------------

    def pick(self, model: ModelName, key: int | None = None) -> Revision | None:
        """The revision that the next request of a model goes to, or any request of that key."""
        route = self._routes.get(model)
        return None if route is None else route.pick(key)

    def get(self, name: ModelName) -> Revision | None:
        """The revision that speaks for a model: the one that most requests go to."""
        route = self._routes.get(name)
        return None if route is None else route.release.leading

    def release(self, name: ModelName) -> Release | None:
        """How a model's requests are split."""
        route = self._routes.get(name)
        return None if route is None else route.release

    def live(self, name: RevisionName) -> Revision | None:
        """The revision of that name, if it is in traffic."""
        return self._live.get(name)

    def all(self) -> tuple[Revision, ...]:
        """The leading revision of every model, by name."""
        return tuple(self._routes[name].release.leading for name in sorted(self._routes))

    def in_traffic(self) -> tuple[Revision, ...]:
        """Every revision that gets requests, by model."""
        routes = (self._routes[name] for name in sorted(self._routes))
        return tuple(revision for route in routes for revision in route.release.revisions)

    async def history(self, name: ModelName) -> tuple[Record, tuple[Revision, ...]]:
        """A model's record and all revisions that are kept, the newest first."""
        record = await self._store.read(name)
        return record, await self._revisions(record, sorted(record.digests, reverse=True))

    async def kept(self, model: ModelName, name: RevisionName) -> Revision:
        """A revision that is kept, in traffic or not; raises RevisionNotFound, StoreUnavailable."""
        record = await self._store.read(model)
        for revision in await self._revisions(record, (number_of(record, name),)):
            return revision
        raise overtaken(model)

    def subscribe(self, listener: ChangeListener) -> None:
        """Calls the listener at every change of what gets requests, in order, on the event loop; it
        must not raise."""
        self._listeners.append(listener)

    def subscribe_pinned(self, listener: ImageListener) -> None:
        """Calls the listener with the image of every revision that is about to be published; it
        must not raise."""
        self._pinned_listeners.append(listener)

    def load_before(self, loader: Loader) -> None:
        """Has what listeners need to know of revisions read before they hear of them."""
        self._loaders.append(loader)

    # -- how -----------------------------------------------------------------------------------

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

    def _owner(self, name: ModelName, by: Identity) -> TenantName:
        """Whose model it is after a deployment by that identity."""
        leading = self.get(name)
        if leading is None:
            return by.tenant
        if not by.owns(leading):
            raise Conflict(f"the name {name} is taken", hint="choose another name")
        return leading.tenant

    async def _redirect(self, model: ModelName, change: RecordChange, by: Identity) -> Release:
        async with self._changing:
            leading = self.get(model)
            if leading is None or not by.owns(leading):
                raise ModelNotFound(f"no model {model} is deployed", model=model)
            await self._change(model, change)
            release = self.release(model)
        if release is None:
            raise ModelNotFound(f"model {model} was deleted at the same time", model=model)
        return release

    async def _change(
        self, model: ModelName, change: RecordChange, draft: RevisionDraft | None = None
    ) -> Record:
        """Makes a change on what the store has now, and announces what then is.

        Another control plane may come first: then the change is made on top of that one's.
        """
        for _ in range(_MOST_TRIES):
            before = await self._store.read(model)
            after = change(before)
            added = draft if after.last_number > before.last_number else None
            release = await self._release(after, added)
            if after == before or await self._is_written(after, added):
                self._announce(model, release)
                return after
        raise overtaken(model)

    async def _is_written(self, record: Record, added: RevisionDraft | None) -> bool:
        try:
            await self._store.write(record, added)
        except Conflict:
            return False
        return True

    async def _release(self, record: Record, added: RevisionDraft | None) -> Release | None:
        """What the record says, with all that requests need to know."""
        if not record.is_deployed:
            return None
        new = () if added is None else (added.numbered(record.last_number),)
        old = record.percents.keys() - {revision.number for revision in new}
        revisions = (*new, *await self._revisions(record, old))
        return release_of(record, [it for it in revisions if it.number in record.percents])

    async def _revisions(self, record: Record, numbers: Iterable[int]) -> tuple[Revision, ...]:
        """Those revisions; what is in traffic is in memory."""
        release = self.release(record.model)
        known = {it.number: it for it in (() if release is None else release.revisions)}
        wanted = tuple(numbers)
        if known.keys() >= set(wanted):
            return tuple(known[number] for number in wanted)
        return await self._store.revisions(record, wanted)

    def _announce(self, model: ModelName, after: Release | None) -> None:
        """Takes a change over; our own memory, not the store's reply, says what was before: a
        change whose reply was lost is announced by its repetition."""
        change = Change(model, self.release(model), after)
        if after is None:
            self._routes.pop(model, None)
        elif after != change.before:
            self._routes[model] = Route(after)
        if change.is_change:
            for revision in change.left:
                del self._live[revision.name]
            for revision in () if after is None else after.revisions:
                self._live[revision.name] = revision
            for listener in self._listeners:
                listener(change)

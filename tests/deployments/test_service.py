import asyncio
import itertools

import pytest

from control_plane.deployments.memory_store import MemoryDeploymentStore
from control_plane.deployments.resolver import KnownSources
from control_plane.deployments.service import Deployments
from control_plane.deployments.store import Change, RevisionDraft
from infra.contracts.base import ModelName
from infra.contracts.revision import ModelFacts, ResolvedSource
from infra.errors import ModelNotFound, SourceInvalid, StoreUnavailable
from tests.fleet.makers import CHAT, SOURCE, a_source, a_spec, some_facts

KNOWN = KnownSources({SOURCE: (a_source(), some_facts())})


class ForgetfulStore(MemoryDeploymentStore):
    """Makes a change and loses the reply, as often as it is told to."""

    lost_replies = 0

    async def publish(self, draft: RevisionDraft) -> Change:
        change = await super().publish(draft)
        self._lose()
        return change

    async def retire(self, model: ModelName) -> Change:
        change = await super().retire(model)
        self._lose()
        return change

    def _lose(self) -> None:
        if self.lost_replies:
            self.lost_replies -= 1
            raise StoreUnavailable("the reply was lost")


def a_service(store: MemoryDeploymentStore | None = None) -> tuple[Deployments, list[Change]]:
    deployments = Deployments(store or MemoryDeploymentStore(), KNOWN)
    changes: list[Change] = []
    deployments.subscribe(changes.append)
    return deployments, changes


async def test_a_deploy_is_readable_and_announced_once():
    deployments, changes = a_service()
    revision = await deployments.deploy(a_spec(), now=5.0)
    again = await deployments.deploy(a_spec(), now=6.0)
    assert again is revision or again == revision
    assert deployments.get(CHAT) == revision
    assert (revision.name, revision.created_at) == ("chat@1", 5.0)
    assert changes == [Change(CHAT, None, revision)]


async def test_a_delete_is_announced_and_a_second_one_is_not_found():
    deployments, changes = a_service()
    revision = await deployments.deploy(a_spec(), now=5.0)
    await deployments.delete(CHAT, now=6.0)
    assert deployments.get(CHAT) is None and deployments.all() == ()
    assert changes[-1] == Change(CHAT, revision, None)
    with pytest.raises(ModelNotFound):
        await deployments.delete(CHAT, now=7.0)
    assert len(changes) == 2


async def test_a_source_that_does_not_resolve_changes_nothing():
    deployments, changes = a_service()
    with pytest.raises(SourceInvalid):
        await deployments.deploy(a_spec(source="file:///nowhere"), now=1.0)
    assert changes == []


async def test_a_restart_finds_what_was_deployed():
    store = MemoryDeploymentStore()
    before, _ = a_service(store)
    for name in ("a", "b"):
        await before.deploy(a_spec(name), now=1.0)
    after, changes = a_service(store)
    await after.load()
    assert [it.name for it in after.all()] == ["a@1", "b@1"]
    assert [change.before for change in changes] == [None, None]


async def test_a_lost_reply_is_made_good_by_repeating():
    store = ForgetfulStore()
    deployments, changes = a_service(store)
    store.lost_replies = 1
    with pytest.raises(StoreUnavailable):
        await deployments.deploy(a_spec(), now=1.0)
    revision = await deployments.deploy(a_spec(), now=2.0)
    assert revision.number == 1
    store.lost_replies = 1
    with pytest.raises(StoreUnavailable):
        await deployments.delete(CHAT, now=3.0)
    await deployments.delete(CHAT, now=4.0)
    assert changes == [Change(CHAT, None, revision), Change(CHAT, revision, None)]


async def test_concurrent_deploys_are_announced_in_the_stores_order():
    deployments, changes = a_service()
    specs = [a_spec(scaling={"max": most}) for most in range(1, 21)]
    await asyncio.gather(*(deployments.deploy(spec, now=1.0) for spec in specs))
    assert len(changes) == 20
    for before, after in itertools.pairwise(changes):
        assert before.after == after.before
    assert deployments.get(CHAT) == changes[-1].after


DRAFT = "file:///models/small"
WITH_DRAFT = a_spec(engine={"speculation": "draft", "draft_source": DRAFT})


def a_service_with_draft(source: ResolvedSource, facts: ModelFacts) -> Deployments:
    known = KnownSources(KNOWN.sources | {DRAFT: (source, facts)})
    return Deployments(MemoryDeploymentStore(), known)


async def test_a_draft_models_bytes_are_pinned_beside_the_models():
    deployments = a_service_with_draft(a_source("sha256:11"), some_facts())
    other = a_service_with_draft(a_source("sha256:22"), some_facts())

    revision = await deployments.deploy(WITH_DRAFT, now=5.0)

    assert revision.source == a_source()
    assert revision.draft_source == a_source("sha256:11")
    assert (await other.deploy(WITH_DRAFT, now=5.0)).digest != revision.digest
    assert (await deployments.deploy(WITH_DRAFT, now=6.0)).name == revision.name


async def test_a_draft_model_with_another_vocabulary_is_refused():
    facts = some_facts().model_copy(update={"vocabulary": 32000})
    deployments = a_service_with_draft(a_source("sha256:11"), facts)

    with pytest.raises(SourceInvalid, match="vocabulary of 32000 tokens, the model one of 49152"):
        await deployments.deploy(WITH_DRAFT, now=5.0)

    assert deployments.get(CHAT) is None

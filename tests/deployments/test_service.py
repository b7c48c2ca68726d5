import asyncio
import itertools

import pytest

from control_plane.deployments.memory_store import MemoryDeploymentStore
from control_plane.deployments.record import Record
from control_plane.deployments.release import Release, Share
from control_plane.deployments.resolver import KnownSources
from control_plane.deployments.service import Deployments
from control_plane.deployments.store import Change, RevisionDraft
from control_plane.tenancy.identity import Identity
from infra.contracts.base import RevisionName
from infra.contracts.revision import ModelFacts, ResolvedSource, Revision
from infra.contracts.tenancy import TenantName
from infra.errors import (
    Conflict,
    Invalid,
    ModelNotFound,
    RevisionNotFound,
    SourceInvalid,
    StoreUnavailable,
)
from tests.fleet.makers import CHAT, SOURCE, a_source, a_spec, some_facts

KNOWN = KnownSources({SOURCE: (a_source(), some_facts())})


class ForgetfulStore(MemoryDeploymentStore):
    """Makes a change and loses the reply, as often as it is told to."""

    lost_replies = 0

    async def write(self, record: Record, added: RevisionDraft | None = None) -> None:
        await super().write(record, added)
        if self.lost_replies:
            self.lost_replies -= 1
            raise StoreUnavailable("the reply was lost")


def a_service(store: MemoryDeploymentStore | None = None) -> tuple[Deployments, list[Change]]:
    deployments = Deployments(store or MemoryDeploymentStore(), KNOWN)
    changes: list[Change] = []
    deployments.subscribe(changes.append)
    return deployments, changes


def whole(revision: Revision, generation: int = 1) -> Release:
    """All requests go to one revision."""
    return Release((Share(revision, 100),), generation)


def shares(release: Release) -> dict[str, int]:
    return {share.revision.name: share.percent for share in release.shares}


async def test_a_deploy_is_readable_and_announced_once():
    deployments, changes = a_service()
    revision = await deployments.deploy(a_spec(), now=5.0)
    again = await deployments.deploy(a_spec(), now=6.0)
    assert again is revision or again == revision
    assert deployments.get(CHAT) == revision
    assert (revision.name, revision.created_at) == ("chat@1", 5.0)
    assert [(it.before, it.after) for it in changes] == [(None, whole(revision))]


async def test_a_delete_is_announced_and_a_second_one_is_not_found():
    deployments, changes = a_service()
    revision = await deployments.deploy(a_spec(), now=5.0)
    await deployments.delete(CHAT, now=6.0)
    assert deployments.get(CHAT) is None and deployments.all() == ()
    assert changes[-1] == Change(CHAT, whole(revision), None)
    assert changes[-1].left == (revision,)
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
    assert changes == [Change(CHAT, None, whole(revision)), Change(CHAT, whole(revision), None)]


async def test_concurrent_deploys_are_announced_in_the_stores_order():
    deployments, changes = a_service()
    specs = [a_spec(scaling={"max": most}) for most in range(1, 21)]
    await asyncio.gather(*(deployments.deploy(spec, now=1.0) for spec in specs))
    assert len(changes) == 20
    for before, after in itertools.pairwise(changes):
        assert before.after == after.before
    assert deployments.release(CHAT) == changes[-1].after


ONE, TWO, THREE = (RevisionName(f"chat@{number}") for number in (1, 2, 3))


async def with_revisions(count: int = 3) -> tuple[Deployments, list[Change]]:
    """A model that got so many revisions; the last one has all requests."""
    deployments, changes = a_service()
    for number in range(1, count + 1):
        await deployments.deploy(a_spec(scaling={"max": number}), now=float(number))
    changes.clear()
    return deployments, changes


async def test_a_split_is_announced_once_and_picked_by():
    deployments, changes = await with_revisions()
    release = await deployments.split(CHAT, {ONE: 25, THREE: 75})
    assert shares(release) == {THREE: 75, ONE: 25}
    assert deployments.release(CHAT) == release == changes[-1].after
    assert [it.name for it in deployments.in_traffic()] == [THREE, ONE]
    picked = [deployments.pick(CHAT) for _ in range(100)]
    assert [it.name for it in picked if it].count(ONE) == 25
    homes = {(key, deployments.pick(CHAT, key)) for key in range(8) for _ in range(5)}  # type: ignore[misc]
    assert len(homes) == 8
    assert deployments.get(CHAT) == deployments.live(THREE)
    assert deployments.live(TWO) is None
    await deployments.split(CHAT, {THREE: 75, ONE: 25, TWO: 0})
    assert len(changes) == 1


async def test_a_rollback_goes_where_all_requests_last_went_or_to_any_revision():
    deployments, changes = await with_revisions()
    assert shares(await deployments.rollback(CHAT)) == {TWO: 100}
    assert [it.name for it in changes[-1].left] == [THREE]
    assert shares(await deployments.rollback(CHAT, ONE)) == {ONE: 100}
    assert shares(await deployments.rollback(CHAT)) == {TWO: 100}


async def test_there_is_no_rollback_from_a_first_revision():
    deployments, _ = await with_revisions(1)
    with pytest.raises(Conflict, match="no other revision"):
        await deployments.rollback(CHAT)


async def test_a_revision_without_traffic_is_kept_and_nobody_hears_of_it():
    deployments, changes = await with_revisions(1)
    dark = await deployments.deploy(a_spec(scaling={"max": 9}), takes_traffic=False, now=5.0)
    assert dark.name == TWO and deployments.live(TWO) is None and changes == []
    record, revisions = await deployments.history(CHAT)
    assert [it.name for it in revisions] == [TWO, ONE]
    assert deployments.release(CHAT).generation == record.generation == 2  # type: ignore[union-attr]
    await deployments.split(CHAT, {TWO: 100})
    assert deployments.get(CHAT) == dark


async def test_a_new_model_needs_traffic():
    deployments, _ = a_service()
    with pytest.raises(Invalid, match="no other revision of chat"):
        await deployments.deploy(a_spec(), takes_traffic=False, now=1.0)
    assert deployments.all() == ()


@pytest.mark.parametrize(
    ("percents", "kind"),
    [
        ({}, Invalid),
        ({ONE: 60}, Invalid),
        ({ONE: 60, TWO: 60}, Invalid),
        ({ONE: 150, TWO: -50}, Invalid),
        ({RevisionName("chat@9"): 100}, RevisionNotFound),
        ({RevisionName("other@1"): 100}, RevisionNotFound),
        ({RevisionName("chat@01"): 100}, RevisionNotFound),
        ({RevisionName("chat@" + "9" * 5000): 100}, RevisionNotFound),
        ({RevisionName("chat"): 100}, RevisionNotFound),
    ],
)
async def test_a_split_that_cannot_be_changes_nothing(
    percents: dict[RevisionName, int], kind: type[Exception]
):
    deployments, changes = await with_revisions(2)
    with pytest.raises(kind):
        await deployments.split(CHAT, percents)
    assert changes == []


async def test_a_change_on_top_of_an_unseen_one_is_refused_where_a_generation_is_named():
    deployments, _ = await with_revisions(2)
    seen = deployments.release(CHAT)
    assert seen is not None
    await deployments.split(CHAT, {ONE: 50, TWO: 50}, generation=seen.generation)
    with pytest.raises(Conflict) as refusal:
        await deployments.split(CHAT, {ONE: 100}, generation=seen.generation)
    assert refusal.value.facts == {"generation": seen.generation + 1}
    with pytest.raises(Conflict):
        await deployments.rollback(CHAT, generation=seen.generation)


async def test_another_tenants_model_is_not_there():
    deployments, changes = await with_revisions(2)
    stranger = Identity(TenantName("stranger"))
    with pytest.raises(ModelNotFound):
        await deployments.split(CHAT, {ONE: 100}, by=stranger)
    with pytest.raises(ModelNotFound):
        await deployments.rollback(CHAT, by=stranger)
    assert changes == []


async def test_two_control_planes_change_one_model_and_lose_no_change():
    store = MemoryDeploymentStore()
    (ours, _), (theirs, heard) = a_service(store), a_service(store)
    await ours.deploy(a_spec(), now=1.0)
    await theirs.deploy(a_spec(scaling={"max": 2}), now=2.0)
    await asyncio.gather(
        *(ours.deploy(a_spec(scaling={"max": most}), now=3.0) for most in range(3, 9)),
        *(theirs.deploy(a_spec(scaling={"max": most}), now=3.0) for most in range(9, 15)),
    )
    record, revisions = await ours.history(CHAT)
    assert record.generation == record.last_number == len(revisions) == 14
    assert {it.spec.scaling.max for it in revisions} == {1, *range(2, 15)}
    assert heard[0].before is None


async def test_a_restart_finds_the_split():
    store = MemoryDeploymentStore()
    before, _ = a_service(store)
    for most in (1, 2):
        await before.deploy(a_spec(scaling={"max": most}), now=1.0)
    release = await before.split(CHAT, {ONE: 30, TWO: 70})
    after, changes = a_service(store)
    await after.load()
    assert after.release(CHAT) == release
    assert len(changes) == 1


async def test_a_rollback_whose_reply_was_lost_is_made_good_by_repeating():
    store = ForgetfulStore()
    deployments, changes = a_service(store)
    for most in (1, 2):
        await deployments.deploy(a_spec(scaling={"max": most}), now=1.0)
    store.lost_replies = 1
    with pytest.raises(StoreUnavailable):
        await deployments.split(CHAT, {ONE: 100})
    assert len(changes) == 2
    await deployments.split(CHAT, {ONE: 100})
    assert [it.name for it in changes[-1].left] == [TWO]


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

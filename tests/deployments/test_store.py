import asyncio

import pytest

from control_plane.deployments.record import Record
from control_plane.deployments.store import DeploymentStore, RevisionDraft
from infra.contracts.base import ModelName
from infra.errors import Conflict
from tests.fleet.makers import CHAT, a_draft


async def publish(store: DeploymentStore, draft: RevisionDraft) -> Record:
    record = await store.read(draft.model)
    after = record.published(draft.digest, takes_traffic=True)
    await store.write(after, draft if after.last_number > record.last_number else None)
    return after


async def test_what_was_never_deployed_has_an_empty_record(store: DeploymentStore):
    assert await store.read(CHAT) == Record(model=CHAT)
    assert await store.load() == ()


async def test_a_record_and_its_revision_are_written_together(store: DeploymentStore):
    draft = a_draft()
    record = await publish(store, draft)
    assert await store.read(CHAT) == record
    assert await store.load() == ((record, (draft.numbered(1),)),)


async def test_revisions_out_of_traffic_are_kept_and_read_in_the_order_asked_for(
    store: DeploymentStore,
):
    first, second = a_draft(), a_draft(digest="sha256:01")
    await publish(store, first)
    record = await publish(store, second)
    assert [kept.revisions for kept in await store.load()] == [(second.numbered(2),)]
    everything = await store.revisions(record, [1, 7, 2])
    assert everything == (first.numbered(1), second.numbered(2))
    assert await store.revisions(record, []) == ()


async def test_a_split_is_read_back_with_every_revision_in_traffic(store: DeploymentStore):
    for number in range(3):
        record = await publish(store, a_draft(digest=f"sha256:{number:02}"))
    record = record.split({1: 20, 3: 80})
    await store.write(record)
    [kept] = await store.load()
    assert kept.record == record
    assert {revision.number for revision in kept.revisions} == {1, 3}


async def test_only_the_next_generation_is_written(store: DeploymentStore):
    first = await publish(store, a_draft())
    second = await publish(store, a_draft(digest="sha256:01"))
    late = first.published("sha256:late", takes_traffic=True)
    with pytest.raises(Conflict):
        await store.write(late, a_draft(digest="sha256:late"))
    assert await store.read(CHAT) == second
    assert len(await store.revisions(second, [1, 2])) == 2


async def test_a_write_may_be_repeated(store: DeploymentStore):
    draft = a_draft()
    record = await publish(store, draft)
    await store.write(record, draft)
    assert await store.read(CHAT) == record


async def test_revisions_that_the_record_drops_are_gone(store: DeploymentStore):
    for number in range(3):
        record = await publish(store, a_draft(digest=f"sha256:{number:02}"))
    fewer = record.model_copy(
        update={"generation": record.generation + 1, "digests": {3: record.digests[3]}}
    )
    await store.write(fewer)
    assert [it.number for it in await store.revisions(fewer, [1, 2, 3])] == [3]


async def test_a_retired_model_is_gone_and_its_numbers_are_not_used_again(store: DeploymentStore):
    record = (await publish(store, a_draft())).retired()
    await store.write(record)
    assert await store.load() == ()
    assert await store.revisions(record, [1]) == ()
    again = await publish(store, a_draft())
    assert again.percents == {2: 100}


async def test_models_are_listed_by_name_and_do_not_mix(store: DeploymentStore):
    for name in ("b", "a", "c"):
        await publish(store, a_draft(name))
    await store.write((await store.read(ModelName("c"))).retired())
    loaded = await store.load()
    assert [kept.revisions[0].name for kept in loaded] == ["a@1", "b@1"]


async def test_of_many_writes_at_once_each_generation_takes_one(store: DeploymentStore):
    async def until_published(draft: RevisionDraft) -> None:
        while True:
            try:
                await publish(store, draft)
                return
            except Conflict:
                continue

    drafts = [a_draft(digest=f"sha256:{number:02}") for number in range(15)]
    await asyncio.gather(*(until_published(draft) for draft in drafts))
    record = await store.read(CHAT)
    assert (record.generation, record.last_number) == (15, 15)
    kept = await store.revisions(record, range(1, 16))
    assert {it.number: it.digest for it in kept} == record.digests

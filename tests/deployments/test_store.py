import asyncio

from control_plane.deployments.store import Change, DeploymentStore
from infra.contracts.base import ModelName
from tests.fleet.makers import CHAT, a_draft


async def test_a_first_deploy_is_number_one(store: DeploymentStore):
    draft = a_draft()
    assert await store.publish(draft) == Change(CHAT, None, draft.numbered(1))
    assert await store.current() == (draft.numbered(1),)


async def test_an_equal_draft_gives_the_same_revision(store: DeploymentStore):
    first = await store.publish(a_draft())
    later = a_draft().model_copy(update={"created_at": 99.0})
    again = await store.publish(later)
    assert again == Change(CHAT, first.after, first.after)
    assert not again.is_change


async def test_new_content_is_a_new_number_and_old_content_its_old_one(store: DeploymentStore):
    first = (await store.publish(a_draft())).after
    second = (await store.publish(a_draft(digest="sha256:01"))).after
    third = (await store.publish(a_draft(scaling={"max": 2}))).after
    assert [it.name for it in (first, second, third) if it] == ["chat@1", "chat@2", "chat@3"]
    assert await store.publish(a_draft()) == Change(CHAT, third, first)
    assert [it.name for it in await store.current()] == ["chat@1"]


async def test_a_retired_model_is_gone_and_its_numbers_are_not_used_again(store: DeploymentStore):
    first = (await store.publish(a_draft())).after
    assert await store.retire(CHAT) == Change(CHAT, first, None)
    assert await store.retire(CHAT) == Change(CHAT, None, None)
    assert await store.current() == ()
    again = await store.publish(a_draft())
    assert again.before is None and again.after is not None
    assert again.after.name == "chat@2"


async def test_retiring_what_never_was_leaves_nothing(store: DeploymentStore):
    assert await store.retire(ModelName("never")) == Change(ModelName("never"), None, None)
    assert (await store.publish(a_draft("never"))).after.number == 1  # type: ignore[union-attr]


async def test_models_are_listed_by_name_and_do_not_mix(store: DeploymentStore):
    for name in ("b", "a", "c"):
        await store.publish(a_draft(name))
    await store.retire(ModelName("c"))
    assert [it.name for it in await store.current()] == ["a@1", "b@1"]


async def test_many_at_once_number_without_gaps_or_repeats(store: DeploymentStore):
    drafts = [a_draft(digest=f"sha256:{number:02}") for number in range(40)]
    changes = await asyncio.gather(*(store.publish(draft) for draft in drafts + drafts))
    numbers = {change.after.number for change in changes if change.after}
    assert numbers == set(range(1, 41))
    befores = [change.before for change in changes]
    assert befores.count(None) == 1  # each change knows the one before it

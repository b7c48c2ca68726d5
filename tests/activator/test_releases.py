"""What is deployed and deleted while requests are held and run."""

from infra.contracts.revision import ReplicaState
from infra.errors import (
    ModelNotFound,
)
from tests.activator.world import World, says, scenario, spec


@scenario
async def test_the_held_finish_on_the_revision_they_were_admitted_to(world: World) -> None:
    old = await world.deploy()
    running = [world.start(world.call(n), old) for n in range(3)]
    await world.settled()

    new = await world.deploy(spec(execution=7))
    world.ready(new)
    later = await world.start(world.call(3), new).result()
    assert not any(one.client.has_started for one in running), "no replica is of their revision"
    world.ready(old)

    clients = [await one.result() for one in running]
    assert {client.headers[b"firstlight-revision"] for client in clients} == {b"chat@1"}
    assert later.headers[b"firstlight-revision"] == b"chat@2"
    assert world.wakes == ["chat@1"]
    world.check(old, new)


@scenario
async def test_who_lost_its_replica_tries_again_on_its_own_revision(world: World) -> None:
    old = await world.deploy()
    first = world.ready(old, says("never", seconds=1e6))
    running = world.start(world.call(), old)
    await world.settled()
    new = await world.deploy(spec(execution=7))
    world.ready(new)

    world.replicas.kill(first)
    world.report(first, ReplicaState.FAILED)
    await world.settled()
    assert world.wakes == ["chat@1"]
    world.ready(old)

    client = await running.result()
    assert client.headers[b"firstlight-revision"] == b"chat@1"
    world.check(old, new)


@scenario
async def test_the_running_finish_on_the_old_revision(world: World) -> None:
    old = await world.deploy()
    world.ready(old, says("old", seconds=2))
    running = world.start(world.call(), old)
    await world.settled()

    await world.deploy(spec(execution=7))

    client = await running.result()
    assert client.headers[b"firstlight-revision"] == b"chat@1"
    world.check(old)


@scenario
async def test_the_held_of_a_deleted_model_are_told(world: World) -> None:
    revision = await world.deploy()
    running = world.start(world.call(), revision)
    await world.settled()

    await world.deployments.delete(revision.model, now=world.clock.now())

    assert isinstance(await running.refused(), ModelNotFound)
    world.check(revision)


@scenario
async def test_a_deletion_tells_who_waits_for_any_revision(world: World) -> None:
    revisions = [await world.deploy(spec(execution=7 + n)) for n in range(3)]
    running = [world.start(world.call(n), one) for n, one in enumerate(revisions)]
    await world.settled()

    await world.deployments.delete(revisions[0].model, now=world.clock.now())

    for one in running:
        assert isinstance(await one.refused(), ModelNotFound)
    world.check(*revisions)


@scenario
async def test_a_deleted_models_request_is_not_tried_again_on_its_namesake(world: World) -> None:
    old = await world.deploy()
    first = world.ready(old, says("never", seconds=1e6))
    running = world.start(world.call(), old)
    await world.settled()
    await world.deployments.delete(old.model, now=world.clock.now())
    new = await world.deploy()
    world.ready(new)

    world.replicas.kill(first)

    assert isinstance(await running.refused(), ModelNotFound)
    assert new.name == "chat@2"
    world.check(old, new)

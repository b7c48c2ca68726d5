"""Revisions that pin an image: which nodes take them, what those are told, who is parked."""

from dataclasses import replace

import pytest

from control_plane.fleet.need import need_of
from control_plane.fleet.node import Node
from control_plane.fleet.placement import RUN_CONTAINERS, NoRoom, place, room_on
from control_plane.fleet.standby import StandbyLimits, class_of, size_standby, wishes_of
from control_plane.fleet.standby_demand import Worth
from control_plane.fleet.state import Fleet
from infra.contracts.image import ImagePool, ResolvedImage
from infra.contracts.node import Runtime
from infra.contracts.revision import Revision
from tests.fleet.makers import GIB, N1, a_registration, a_revision, an_image, with_image
from tests.fleet.test_replica import a_replica

OWN, OTHER = an_image("own"), an_image("other")
DEFAULT = an_image("default", is_asked_for=False)


def a_node(name: str, runtime: Runtime, memory_bytes: int = 16 * GIB) -> Node:
    registration = a_registration(name, runtime=runtime, memory_bytes=memory_bytes)
    return Node.registered(registration, version=1, lease_s=10, now=0)


PROCESSES, CONTAINERS = a_node("p", "process"), a_node("c", "container")


def placed(revision: Revision, *nodes: Node) -> object:
    rooms = [room_on(node, [], wanted_by=revision) for node in nodes]
    return place(need_of(revision), rooms)


def parked(node: Node, own: int = 0, pools: dict[ResolvedImage, int] | None = None) -> Node:
    ready = [ImagePool(image=it.reference, workers=n) for it, n in (pools or {}).items()]
    return replace(node, standby_ready=own, pools_ready=tuple(ready))


def test_an_image_that_a_model_names_is_for_nodes_of_containers_only():
    asks = with_image(a_revision(), OWN)
    assert placed(asks, parked(PROCESSES, own=4), CONTAINERS) == "c"
    assert placed(asks, PROCESSES) == NoRoom(
        "the model names an image, and all nodes run workers as processes", False, RUN_CONTAINERS
    )


def test_that_a_node_runs_processes_does_not_hide_what_the_others_lack():
    asks = with_image(a_revision(resources={"memory_mib": 20 << 10}), OWN)
    refusal = placed(asks, PROCESSES, CONTAINERS)
    assert isinstance(refusal, NoRoom) and str(refusal.nearest).startswith("node c has 16.0 GiB")


def test_the_platforms_own_image_keeps_nobody_from_running_as_a_process():
    revision = with_image(a_revision(), DEFAULT)
    assert placed(revision, PROCESSES) == "p"
    assert PROCESSES.image_for(revision) is None
    assert CONTAINERS.image_for(revision) == DEFAULT.reference


def test_a_worker_parked_with_another_image_is_no_reason_to_go_to_its_node():
    asks = with_image(a_revision(), OWN)
    first = parked(a_node("a", "container"), own=4, pools={OTHER: 2})
    assert placed(asks, first, CONTAINERS) == "a"  # the first of two that are as good
    assert placed(asks, first, parked(CONTAINERS, pools={OWN: 1})) == "c"


def test_who_loads_takes_a_parked_worker_of_its_own_image_from_others():
    node = parked(CONTAINERS, own=1, pools={OWN: 1})
    loading = replace(a_replica(), revision=with_image(a_revision("x"), OWN))
    mine, default = with_image(a_revision("y"), OWN), a_revision("z")
    assert room_on(node, [], wanted_by=mine).standby_free == 1
    assert room_on(node, [loading], wanted_by=mine).standby_free == 0
    assert room_on(node, [loading], wanted_by=default).standby_free == 1


@pytest.mark.parametrize(
    ("runtime", "image", "told"),
    [
        ("container", OWN, OWN.reference),
        ("container", DEFAULT, DEFAULT.reference),
        ("process", DEFAULT, None),
        ("process", OWN, OWN.reference),  # so that the node says that it cannot
    ],
)
def test_a_node_is_told_the_image_of_each_replica(runtime, image, told):
    fleet = Fleet()
    fleet.join(a_node("n1", runtime))
    fleet.assign(replace(a_replica(), revision=with_image(a_revision(), image)))
    (assignment,) = fleet.desired_state(N1).replicas
    assert assignment.image == told
    fleet.check_integrity()


def pools(node: Node, *revisions: Revision, parked: int = 4, **options) -> tuple[int, dict]:
    limits = StandbyLimits(parked=parked)
    sizes = size_standby(wishes_of(revisions), [node], limits=limits, **options)
    standby = sizes[node.node_id]
    return standby.workers, {pool.image: pool.workers for pool in standby.pools}


def wishes(name: str, image, standby: int, at: float) -> Revision:
    revision = a_revision(name, scaling={"standby": standby})
    return with_image(revision, image).model_copy(update={"created_at": at})


def test_each_image_has_a_pool_of_the_largest_wish_of_its_models():
    models = (wishes("a", OWN, 1, 1), wishes("b", OWN, 2, 2), wishes("c", DEFAULT, 1, 3))
    assert pools(CONTAINERS, *models, a_revision("d")) == (
        1,
        {OWN.reference: 2, DEFAULT.reference: 1},
    )
    assert pools(PROCESSES, *models) == (1, {})


def test_where_not_all_pools_fit_the_images_take_turns_from_the_last_deployed_on():
    models = (wishes("a", OWN, 3, 1), wishes("b", OTHER, 3, 2))
    assert pools(CONTAINERS, *models, parked=3) == (0, {OTHER.reference: 2, OWN.reference: 1})
    assert pools(CONTAINERS, *models, parked=0) == (0, {})


def test_nobody_is_parked_with_an_image_before_it_is_settled():
    models = (wishes("a", OWN, 1, 1), wishes("b", OTHER, 1, 2))
    settled = {"is_settled": lambda image: image == OTHER.reference}
    assert pools(CONTAINERS, *models, **settled) == (0, {OTHER.reference: 1})


def test_what_starts_of_an_image_are_worth_makes_its_own_pool_larger():
    models = (wishes("a", OWN, 1, 1), wishes("b", OTHER, 1, 2))
    worth = {class_of(CONTAINERS, OWN.reference): Worth(3, "many came at once")}
    assert pools(CONTAINERS, *models, worth=worth) == (
        0,
        {OWN.reference: 3, OTHER.reference: 1},
    )
